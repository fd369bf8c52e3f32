"""Reading a diffusers folder's JSON and the headers of its safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.models import hub

STEMS = ("diffusion_pytorch_model", "model")
"""Names of weights, as diffusers' classes and as transformers' write them."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where the file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    return value


def is_given(index: Mapping[str, Any], component: str) -> bool:
    """Whether model_index.json names a component; it writes an absent one as [null, null]."""
    return bool(index.get(component, [None])[0])


def components(index: Mapping[str, Any]) -> list[str]:
    """Names of the components in a model_index.json, beside which stand options and absent components."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    ]


def own_settings(folder: Path, known: set[str]) -> dict[str, Any]:
    """Settings of `paradit.json`, if there is one, and the model's name, which else is its hub id or folder.

    Raises InputError for a key that is not `known`.
    """
    path = folder / "paradit.json"
    snapshot = hub.snapshot_of(folder)
    own: dict[str, Any] = {"name": snapshot[0] if snapshot else folder.resolve().name}
    own |= read_json(path) if path.exists() else {}
    if unknown := sorted(own.keys() - known):
        raise InputError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if own.get("train_frames") is not None:
        own["train_frames"] = tuple(own["train_frames"])
    return own


def stored_weights(component: Path) -> tuple[int, int]:
    """(parameters, bytes on disk) of a component's safetensors files; zeros where it has none."""
    files = weight_files(component)
    return sum(_parameters(file) for file in files), sum(file.stat().st_size for file in files)


def weight_files(component: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files that a component is loaded from; none if they are not all there."""
    names, _ = wanted_weights(component, _names(component), variant)
    files = [component / name for name in names]
    return files if all(file.exists() for file in files) else []


def wanted_weights(
    component: Path, names: Collection[str], variant: str | None = None
) -> tuple[list[str], str | None]:
    """Names of the safetensors files that a component is loaded from, and their variant.

    names: the component's files, of which the indexes must be in the folder. variant: is taken first, before
    the usual weights; any other variant, such as "fp16", is taken if there is nothing else. Returns no names
    if there are no weights.
    """
    found: list[tuple[list[str], str | None]] = []
    kinds = [None, *sorted(_variants(names))]
    for kind in [variant, *kinds] if variant else kinds:
        middle = f".{kind}" if kind else ""
        for stem in STEMS:
            single, index = f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"
            # If a folder has both, each library takes another one.
            for name in (index, single) if stem == STEMS[0] else (single, index):
                if name in names:
                    found.append(([single] if name == single else _shards(component / index), kind))
    # An index that has none of its files has only come with the other small files.
    with_files = [weights for weights in found if any(name in names for name in weights[0])]
    return (with_files or found or [([], None)])[0]


def stored_variant(folder: Path) -> str | None:
    """The variant that a model's weights are loaded from, if the usual ones are not all in the folder."""
    for name in components(read_json(folder / "model_index.json")):
        _, variant = wanted_weights(folder / name, _names(folder / name))
        if variant is not None:
            return variant
    return None


def _names(component: Path) -> set[str]:
    return {path.name for path in component.glob("*") if path.exists()}


def _variants(names: Collection[str]) -> set[str]:
    pattern = rf"(?:{'|'.join(STEMS)})(?:\.safetensors\.index\.([^.-]+)\.json|\.([^.-]+)\.safetensors)"
    found = (re.fullmatch(pattern, name) for name in names)
    return {match[1] or match[2] for match in found if match}


def _shards(index: Path) -> list[str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise InputError(f"{index} must say by its weight_map which file each weight is in")
    return sorted(set(files.values()))


def _parameters(file: Path) -> int:
    # A safetensors file begins with the length of its JSON header, 8 bytes little-endian.
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise InputError(f"{file} is not a safetensors file")
        header = json.loads(stream.read(length))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
