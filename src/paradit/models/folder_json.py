"""Reading a diffusers folder's JSON and the headers of its safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from paradit.errors import InputError


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


def own_settings(folder: Path, known: set[str]) -> dict[str, Any]:
    """What `paradit.json` sets, empty where there is none; InputError where a key is not `known`."""
    path = folder / "paradit.json"
    own = read_json(path) if path.exists() else {}
    if unknown := sorted(own.keys() - known):
        raise InputError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if own.get("train_frames") is not None:
        own["train_frames"] = tuple(own["train_frames"])
    return own


def stored_weights(component: Path) -> tuple[int, int]:
    """(parameters, bytes on disk) of a component's safetensors files; zeros where it has none."""
    files = weight_files(component)
    return sum(_parameters(file) for file in files), sum(file.stat().st_size for file in files)


def weight_files(component: Path) -> list[Path]:
    """A component's safetensors files; none where they are not all there."""
    # A sharded component's index names its files; others in the folder may be variants of the same weights.
    for index in sorted(component.glob("*.safetensors.index.json")):
        shards = [component / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        # Of a hub model whose weights are not downloaded yet, the index is there and the shards are not.
        return shards if all(shard.exists() for shard in shards) else []
    plain = [component / f"{stem}.safetensors" for stem in ("diffusion_pytorch_model", "model")]
    return [file for file in plain if file.exists()][:1]


def _parameters(file: Path) -> int:
    # A safetensors file begins with the length of its JSON header, 8 bytes little-endian.
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise InputError(f"{file} is not a safetensors file")
        header = json.loads(stream.read(length))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
