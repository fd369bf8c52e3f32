"""Readers for a diffusers folder's JSON files and the headers of its safetensors files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from paradit.config.errors import InputError
from paradit.config.options import Declared, declared, decode_known, named, read_object, read_values
from paradit.files import read_text
from paradit.models import hub
from paradit.models.defaults import Defaults

STEMS = ("diffusion_pytorch_model", "model")
"""Base names of weights files: the one that diffusers' classes write, and that of transformers' classes."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises InputError."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    return read_object(text, str(path))


_CLASS_NAME = Declared.of("_class_name", str)
_COMPONENT = tuple[str | None, str | None]


def read_index(folder: Path) -> dict[str, Any]:
    """Read a folder's model_index.json, and check its class and its components. Raises InputError."""
    path = folder / "model_index.json"
    index = read_json(path)
    with named(str(path)):
        _CLASS_NAME.read(index.get("_class_name"))
        for name, value in index.items():
            if isinstance(value, list):
                Declared.of(name, _COMPONENT).read(value)
    return index


def components(index: Mapping[str, Any]) -> list[str]:
    """Return the names of the components that a model_index.json lists, except those marked as absent."""
    # diffusers marks an absent component by [null, null].
    return [name for name, value in index.items() if isinstance(value, list) and None not in value]


def usual_name(folder: Path) -> str:
    """Return the name of a model whose folder states none: its hub id, or else the folder's name."""
    snapshot = hub.snapshot_of(folder)
    return snapshot[0] if snapshot else folder.resolve().name


def own_settings(folder: Path, defaults: Defaults, without: Collection[str] = ()) -> tuple[str, Defaults]:
    """Return a model's name and default request values; `paradit.json` in its folder may override them.

    Without that file, the name is the hub id or the folder's name, and the values are `defaults`. without:
    the names of defaults that this kind of model does not have. Raises InputError.
    """
    path = folder / "paradit.json"
    name = Declared.of("name", str)
    fields = {field: one for field, one in declared(Defaults).items() if field not in without}
    own: dict[str, Any] = {"name": usual_name(folder)}
    if path.exists():
        with named(str(path)):
            own |= read_values({"name": name, **fields}, read_json(path))
            return own.pop("name"), replace(defaults, **own)
    return own["name"], defaults


def stored_weights(component: Path, variant: str | None = None) -> tuple[int, int]:
    """Return (parameters, bytes on disk) of a component's safetensors files; zeros if it has none."""
    files = weight_files(component, variant)
    return sum(_parameters(file) for file in files), sum(file.stat().st_size for file in files)


def weight_files(component: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files that a component is loaded from; none if some of them are missing."""
    names, _ = wanted_weights(component, _names(component), variant)
    files = [component / name for name in names]
    return files if all(file.exists() for file in files) else []


def wanted_weights(
    component: Path, names: Collection[str], variant: str | None = None
) -> tuple[list[str], str | None]:
    """Return the names of the safetensors files that a component is loaded from, and their variant.

    names: the names of the component's files; any indexes among them must be in the folder. variant: the
    variant to prefer over the usual weights; any other variant, such as "fp16", is used only if there is
    nothing else. Returns no names if there are no weights.
    """
    found: list[tuple[list[str], str | None]] = []
    kinds = [None, *sorted(_variants(names))]
    for kind in [variant, *kinds] if variant else kinds:
        middle = f".{kind}" if kind else ""
        for stem in STEMS:
            single, index = f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"
            # If a folder has both, diffusers prefers the index, and transformers the single file.
            for name in (index, single) if stem == STEMS[0] else (single, index):
                if name in names:
                    found.append(([single] if name == single else _shards(component / index), kind))
    # An index without any of its files was only downloaded with the other small files.
    with_files = [weights for weights in found if any(name in names for name in weights[0])]
    return (with_files or found or [([], None)])[0]


def stored_variant(folder: Path) -> str | None:
    """Return the variant, such as "fp16", of the weights to load; None for the usual weights."""
    if not folder.is_dir():  # a published model, known only by its configurations
        return None
    for name in components(read_index(folder)):
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


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Contents of a component's index of weights files, which maps each tensor's name to its file's name."""

    weight_map: Mapping[str, str]


def _shards(index: Path) -> list[str]:
    return sorted(set(decode_known(_Weights, read_json(index), str(index)).weight_map.values()))


class StoredTensor(msgspec.Struct):
    """Entry for one tensor in a safetensors file's header: its shape, and its start and end in bytes."""

    shape: tuple[int, ...] = ()
    data_offsets: tuple[int, int] = (0, 0)


def read_header(file: Path) -> tuple[int, dict[str, StoredTensor]]:
    """Return the length, in bytes, of a safetensors file's header, and the header's tensor entries by name.

    Raises ValueError if the file is not a safetensors file.
    """
    # The file begins with the length of the JSON header, as 8 little-endian bytes.
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        # In a file of another kind the length is arbitrary, and may be huge.
        header = stream.read(length) if length < file.stat().st_size else b""
    try:
        # Decoded in two steps, because the header may also hold `__metadata__`, which is not a tensor.
        tensors = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        tensors.pop("__metadata__", None)
        return length, {name: msgspec.json.decode(one, type=StoredTensor) for name, one in tensors.items()}
    except RecursionError:
        raise ValueError("the header is nested too deeply") from None


def _parameters(file: Path) -> int:
    try:
        return sum(prod(tensor.shape) for tensor in read_header(file)[1].values())
    except ValueError:
        raise InputError(f"{file} is not a safetensors file") from None
