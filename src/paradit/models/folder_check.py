"""Is a folder a whole diffusers model that can be run? Reads its small files only. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paradit.errors import InputError
from paradit.models.folder_json import read_json
from paradit.models.registry import SUPPORTED_PIPELINES, family

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")


def check_folder(name: str, folder: Path, files: set[str], local: bool = False) -> None:
    """Check model `name` in `folder`, which holds `files` (relative paths, `/` between).

    `local` says that the weights are in the folder too (of a hub model only their names are known):
    then their lengths are checked as well. Raises `InputError`.
    """
    index = _read_json(name, folder, "model_index.json", files)
    pipeline_class = index.get("_class_name")
    if pipeline_class not in SUPPORTED_PIPELINES:
        raise InputError(
            f"model {name!r} is a {pipeline_class}, which is not supported: "
            f"supported are {', '.join(sorted(SUPPORTED_PIPELINES))}"
        )
    for component in family(pipeline_class).components:
        if not isinstance(index.get(component), list) or index[component][:1] == [None]:
            raise InputError(f"model {name!r} is incomplete: model_index.json names no {component}")
    for component, value in index.items():
        # Options stand beside the components; a component that the model goes without is [null, null].
        if isinstance(value, list) and len(value) == 2 and value[0] is not None:
            _check_component(name, folder, component, files)
    if local:
        for file in sorted(files):
            if file.endswith(".safetensors"):
                _check_safetensors(name, folder, file)


def _check_component(name: str, folder: Path, component: str, files: set[str]) -> None:
    mine = {file for file in files if file.startswith(f"{component}/")}
    if not mine:
        raise InputError(f"model {name!r} is incomplete: the folder {component}/ is missing")
    if component == "scheduler":
        _read_json(name, folder, f"{component}/scheduler_config.json", files)
    elif component.startswith("tokenizer"):
        _read_json(name, folder, f"{component}/tokenizer_config.json", files)
        if not any(f"{component}/{file}" in mine for file in TOKENIZER_FILES):
            raise InputError(f"model {name!r} is incomplete: {component}/{TOKENIZER_FILES[0]} is missing")
    elif component.endswith("processor") or component == "feature_extractor":
        _read_json(name, folder, f"{component}/preprocessor_config.json", files)
    else:
        _read_json(name, folder, f"{component}/config.json", files)
        _check_weights(name, folder, component, mine)


def _check_weights(name: str, folder: Path, component: str, mine: set[str]) -> None:
    # transformers says `model`, diffusers `diffusion_pytorch_model`.
    for stem in ("diffusion_pytorch_model", "model"):
        if f"{component}/{stem}.safetensors" in mine:
            return
        index = f"{component}/{stem}.safetensors.index.json"
        if index in mine:
            shards = set(_read_json(name, folder, index, mine).get("weight_map", {}).values())
            missing = sorted(shard for shard in shards if f"{component}/{shard}" not in mine)
            if missing:
                raise InputError(f"model {name!r} is incomplete: {component}/{missing[0]} is missing")
            return
    pickled = sorted(file for file in mine if file.endswith(PICKLED))
    if pickled:
        raise InputError(
            f"model {name!r} holds pickled weights ({pickled[0]}), which can run code when they are loaded: "
            "convert them to safetensors with diffusers' save_pretrained(folder, safe_serialization=True)"
        )
    stem = "model" if component.startswith(("text_encoder", "image_encoder")) else "diffusion_pytorch_model"
    raise InputError(f"model {name!r} is incomplete: {component}/{stem}.safetensors is missing")


def _check_safetensors(name: str, folder: Path, file: str) -> None:
    """Hold the file's length against its own header: an interrupted copy is found before loading."""
    path = folder / file
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        size = path.stat().st_size
        header = stream.read(length) if len(start) == 8 and length < size else b""
    try:
        tensors = json.loads(header)
        end = max((t["data_offsets"][1] for key, t in tensors.items() if key != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        hint = ": it is a Git LFS pointer, run 'git lfs pull'" if start == b"version " else ""
        raise InputError(f"model {name!r} is incomplete: {file} is not a safetensors file{hint}") from None
    if size < 8 + length + end:
        raise InputError(
            f"model {name!r} is incomplete: {file} has {size} of {8 + length + end} bytes, copy it again"
        )


def _read_json(name: str, folder: Path, file: str, files: set[str]) -> dict[str, Any]:
    if file not in files:
        raise InputError(f"model {name!r} is incomplete: {file} is missing")
    return read_json(folder / file)
