"""Checks that a folder is a complete diffusers model that ParaDiT can run. Reads only its small files.

Does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.models.folder_json import (
    STEMS,
    components,
    read_header,
    read_index,
    read_json,
    wanted_weights,
)
from paradit.models.published import find_published
from paradit.models.registry import family, supported_pipelines

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
NETWORK_CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")


class Incomplete(InputError):
    """Error for a model that lacks a file or a component."""


def check_folder(
    name: str,
    folder: Path,
    files: set[str],
    *,
    variant: str | None = None,
    local: bool = False,
    weights: bool = True,
) -> None:
    """Refuse a model folder that is incomplete or that ParaDiT cannot run. Raises InputError.

    name: the model's name in error messages. files: the relative paths, with `/`, of the model's files.
    variant: a variant of weights, such as "fp16", that some component must have. local: whether the weights
    files are in the folder, so that their lengths are checked too; if not, only their names are known, from
    the hub. weights: whether all weights must be present.
    """
    if "model_index.json" not in files:
        raise Incomplete(no_index(name, other_format(name), files))
    index = read_index(folder)
    _check_class(name, index["_class_name"])
    for component in family(index["_class_name"]).components:
        if component not in components(index):
            raise Incomplete(f"model {name!r} is incomplete: model_index.json names no {component}")
    for component in components(index):
        _check_component(name, folder, component, files)
    if weights:
        _check_weights(name, folder, filter(has_weights, components(index)), files, variant)
    if local:
        for file in sorted(files):
            if file.endswith(".safetensors") and (problem := safetensors_problem(folder / file)):
                raise Incomplete(f"model {name!r} is incomplete: {file} {problem}")


def no_index(name: str, other: str | None, files: Collection[str]) -> str:
    """Return the error text for a model without model_index.json.

    name: the model's name. other: the hub id of the same model in diffusers' format; None if not known.
    files: the relative paths of the model's files.
    """
    hint = f": use {other!r}" if other else ""
    if "vae/merged.ckpt" in files:  # of Open-Sora-Plan, as published
        hint = ": `paradit convert FOLDER` makes a model folder of it"
    return f"model {name!r} is incomplete or not in diffusers' format: model_index.json is missing{hint}"


def other_format(name: str) -> str | None:
    """Return the hub id of a published model in diffusers' format, if `name` is that model in another format.

    Returns None if there is none.
    """
    last = name.rstrip("/").rpartition("/")[2]
    # The same model may also be known under another organisation.
    known = find_published(f"{last}-Diffusers") or find_published(last)
    return known if known != name else None


def _check_class(name: str, pipeline_class: object) -> None:
    if pipeline_class in supported_pipelines():
        return
    supported = ", ".join(sorted(supported_pipelines()))
    if "ImageToVideo" in str(pipeline_class):
        raise InputError(
            f"model {name!r} makes videos from an image ({pipeline_class}), which is not supported yet: "
            f"supported are {supported}"
        )
    raise InputError(
        f"model {name!r} is a {pipeline_class}, which is not supported: supported are {supported}"
    )


def _check_component(name: str, folder: Path, component: str, files: set[str]) -> None:
    """Check a component's folder, configuration and tokenizer files. Raises InputError."""
    mine = names_in(component, files)
    if not mine:
        raise Incomplete(f"model {name!r} is incomplete: the folder {component}/ is missing")
    _read_json(name, folder, f"{component}/{_config_file(component)}", files)
    if component.startswith("tokenizer") and not mine.intersection(TOKENIZER_FILES):
        raise Incomplete(f"model {name!r} is incomplete: {component}/{TOKENIZER_FILES[0]} is missing")


def _config_file(component: str) -> str:
    if component == "scheduler":
        return "scheduler_config.json"
    if component.startswith("tokenizer"):
        return "tokenizer_config.json"
    if component.endswith("processor") or component == "feature_extractor":
        return "preprocessor_config.json"
    return NETWORK_CONFIG


def has_weights(component: str) -> bool:
    """Return whether a pipeline component, such as `vae`, is a network with weights, judged by its name."""
    return _config_file(component) == NETWORK_CONFIG


def names_in(component: str, files: set[str]) -> set[str]:
    """Return the paths of one component's files within the component's folder.

    files: the relative paths of all of the model's files.
    """
    return {file.removeprefix(f"{component}/") for file in files if file.startswith(f"{component}/")}


def _check_weights(
    name: str, folder: Path, parts: Iterable[str], files: set[str], wanted: str | None
) -> None:
    variants = set()
    for component in parts:
        missing, variant = missing_weights(folder, component, files, wanted)
        if missing:
            _refuse_pickled(name, component, files)
            raise Incomplete(f"model {name!r} is incomplete: {component}/{missing[0]} is missing")
        variants |= {variant} if variant else set()
    if wanted is not None and wanted not in variants:
        raise InputError(f"model {name!r} has no weights of variant {wanted!r}: leave it out")
    if len(variants) > 1:
        raise InputError(
            f"model {name!r} has weights of different variants ({', '.join(sorted(variants))}), but only one "
            "variant can be loaded: copy those without a variant"
        )


def missing_weights(
    folder: Path, component: str, files: set[str], variant: str | None = None
) -> tuple[list[str], str | None]:
    """Return the names of the weights files that a component lacks, and the variant of its weights.

    files: the relative paths of all of the model's files. variant: the variant to prefer, such as "fp16";
    None: the usual weights.
    """
    names = names_in(component, files)
    wanted, variant = wanted_weights(folder / component, names, variant)
    # transformers calls its weights `model`, diffusers `diffusion_pytorch_model`.
    stem = STEMS[component.startswith(("text_encoder", "image_encoder"))]
    return sorted({*wanted} - names) if wanted else [f"{stem}.safetensors"], variant


def _refuse_pickled(name: str, component: str, files: set[str]) -> None:
    mine = sorted(names_in(component, files))
    pickled = [file for file in mine if file.endswith(PICKLED)]
    # If there are safetensors, too, the model lacks a file; its format is fine.
    if pickled and not any(file.endswith(".safetensors") for file in mine):
        raise InputError(
            f"model {name!r} has pickled weights ({component}/{pickled[0]}), which can run code when they "
            "are loaded: convert them to safetensors with diffusers' "
            "save_pretrained(folder, safe_serialization=True)"
        )


def lfs_hint(path: Path) -> str:
    """Return the end of an error message about a weights file that is only a Git LFS pointer; else empty."""
    # A pointer is a text file, which begins with the version of its format.
    with path.open("rb") as stream:
        pointer = stream.read(8) == b"version "
    return ": it is a Git LFS pointer, run 'git lfs pull'" if pointer else ""


def safetensors_problem(path: Path) -> str:
    """Return what is wrong with a safetensors file: damaged, or shorter than its header says; empty if fine.

    The text is the end of a sentence that begins with the file's name. A file is too short if copying it was
    interrupted.
    """
    size = path.stat().st_size
    try:
        length, tensors = read_header(path)
    except ValueError:
        return f"is not a safetensors file{lfs_hint(path)}"
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    # The file has 8 bytes with the header's length, the header, and the tensors.
    return f"has {size} of {8 + length + end} bytes, copy it again" if size < 8 + length + end else ""


def _read_json(name: str, folder: Path, file: str, files: set[str]) -> dict[str, Any]:
    if file not in files:
        raise Incomplete(f"model {name!r} is incomplete: {file} is missing")
    return read_json(folder / file)
