"""Search for LoRA files, and their checks against a model. Does not import torch.

A LoRA is given as FILE[=SCALE][@high|@low]. FILE is a path, a file on the hub, or the name of a bundled LoRA.
A file on the hub is given as ID[@REVISION]/PATH, which is the hub's own spelling: a slash in the revision is
written %2F, except in refs/pr/N.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from paradit.config.errors import InputError
from paradit.config.limits import shown, typed
from paradit.files import named
from paradit.models import hub
from paradit.models.folder import bundled_folder, check_name
from paradit.models.lora import EXPERTS, Entry, Expert, Lora, check_entries, not_safetensors, read_entries
from paradit.models.registry import family
from paradit.models.spec import ModelSpec

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
"""Suffixes of files that may run code when they are read."""
MAX_SCALE = 100.0
"""Largest scale of a LoRA; larger ones, such as 80 for 80 %, are mistakes."""
_ASKED = re.compile(
    r"(.+?)(?:=(?!.*\.safetensors)([^=@/]*))?(?:@(?!.*\.safetensors)([^=@/]*))?", re.DOTALL | re.IGNORECASE
)
_HUB_FILE = re.compile(
    r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(refs/(?:pr|convert)/[^/]+|[^/]*))?/(.+)", re.DOTALL
)
_HUB_PAGE = re.compile(r"https?://(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([^/]+)/([^?]+)")


class _HubFile(NamedTuple):
    """File on the hub: the id of its repository, the revision or None for the newest, and its path there."""

    repo: str
    name: str
    revision: str | None


def with_loras(spec: ModelSpec, asked: Iterable[str | Path]) -> ModelSpec:
    """Return the spec of a model with LoRAs, each given as FILE[=SCALE][@high|@low].

    Only the header of a LoRA on the hub is read: `download_loras` downloads the file. Raises InputError if
    one cannot be merged into the model, as far as its header says.
    """
    if isinstance(asked, str | Path):
        raise InputError(f"loras must be a list, such as [{shown(str(asked))}], got {typed(asked)}")
    if isinstance(asked, Mapping) or not isinstance(asked, Iterable):
        raise InputError(f"loras must be a list, such as ['FILE=0.8'], got {typed(asked)}")
    asked = tuple(asked)
    if asked and not family(spec.pipeline_class).takes_loras:
        raise InputError(f"lora {shown(str(asked[0]))} must be left out: the model {spec.name!r} takes none")
    return replace(spec, loras=tuple(_found(one, spec) for one in asked))


def download_loras(spec: ModelSpec) -> ModelSpec:
    """Return the spec of a model with all its LoRAs on this machine; those on the hub are downloaded.

    Raises InputError if a download fails.
    """
    return replace(spec, loras=tuple(_complete(lora, spec) for lora in spec.loras))


def with_same_loras(spec: ModelSpec, loras: Iterable[Lora]) -> ModelSpec:
    """Return the spec of a model with the LoRAs of an earlier run.

    Raises InputError if one of them is missing, or has changed since then.
    """
    return replace(spec, loras=tuple(_unchanged(lora) for lora in loras))


def _unchanged(lora: Lora) -> Lora:
    again = "so the video would not be the same: restore it, or start again with paradit generate"
    path = Path(lora.path)
    try:
        path = path if path.is_file() else _file(lora.file) or _download(lora.file)
    except InputError as error:
        raise InputError(f"{error} (the run began with it, {again})") from None
    if _hash(lora.file, path) != lora.sha256:
        raise InputError(f"lora {lora.file!r} has changed since the run began, {again}")
    return replace(lora, path=str(path))


def _found(asked: str | Path, spec: ModelSpec) -> Lora:
    if not isinstance(asked, str | Path):
        raise InputError(f"loras must be paths, or texts such as 'FILE=0.8@high', got {typed(asked)}")
    file, scale, expert = _parsed(str(asked))
    _check_expert(file, expert, spec)
    lora = Lora(file=file, path="", sha256="", scale=scale, expert=expert)
    if path := _file(file):
        return _local(lora, path, spec)
    _check(lora, _entries_on_hub(file), spec)
    return lora


def _complete(lora: Lora, spec: ModelSpec) -> Lora:
    return lora if lora.path else _local(lora, _download(lora.file), spec)


def _local(lora: Lora, path: Path, spec: ModelSpec) -> Lora:
    """Return the LoRA with a file on this machine, after checking it. Raises InputError."""
    _check(lora, read_entries(lora.file, path), spec)
    return replace(lora, path=str(path), sha256=_hash(lora.file, path))


def _check(lora: Lora, entries: Mapping[str, Entry], spec: ModelSpec) -> None:
    sizes = spec.transformers[lora.index]
    check_entries(lora.file, entries, width=sizes.width, layers=sizes.num_layers, model=spec.name)


def _parsed(asked: str) -> tuple[str, float, Expert | None]:
    """Return the file, scale and expert that FILE[=SCALE][@high|@low] names. Raises InputError."""
    # A file may have any characters in its name, and so may a URL, which is refused later.
    if named("lora", asked).exists() or asked.startswith(("http://", "https://")):
        return asked, 1.0, None
    found = _ASKED.fullmatch(asked)
    file, number, word = found.groups() if found else (asked, None, None)
    expert = next((one for one in EXPERTS if word and one == word.lower()), None)
    if word is not None and expert is None:
        on_hub = _HUB_FILE.fullmatch(file)
        hint = (
            f" (a revision comes after the id: '{on_hub[1]}@{word}/{on_hub[3]}')" if on_hub and word else ""
        )
        raise InputError(f"lora {shown(asked)}: the expert after @ must be high or low, got {word!r}{hint}")
    try:
        scale = 1.0 if number is None else float(number)
    except ValueError:
        scale = math.nan
    if not abs(scale) <= MAX_SCALE:
        limits = f"a number from -{MAX_SCALE:g} to {MAX_SCALE:g}"
        raise InputError(f"lora {shown(asked)}: the scale after = must be {limits}, got {number!r}")
    turned = re.fullmatch(r"(.*)@(high|low)", file)
    if number is not None and turned and not named("lora", file).exists():
        raise InputError(
            f"lora {shown(asked)}: the scale comes before the expert: give it as "
            f"'{turned[1]}={number}@{turned[2]}'"
        )
    return file, scale, expert


def _check_expert(file: str, expert: Expert | None, spec: ModelSpec) -> None:
    if expert is None and len(spec.transformers) > 1:
        raise InputError(
            f"lora {file!r} must name an expert of {spec.name!r}, which has two: '{file}@high' (first steps, "
            f"with much noise) or '{file}@low' (last steps)"
        )
    if expert is not None and len(spec.transformers) == 1:
        raise InputError(
            f"lora {file!r} names the expert {expert}, but {spec.name!r} has only one transformer: leave "
            f"@{expert} out"
        )


def _file(file: str) -> Path | None:
    """Return the absolute path of a LoRA file; None if it is on the hub only. Raises InputError."""
    path = named("lora", file)
    if path.suffix.lower() in PICKLES:
        raise InputError(not_safetensors(file))
    if path.is_dir():
        inside = sorted(one.name for one in path.glob("*.safetensors"))
        hint = f" ({', '.join(inside[:3])})" if inside else ""
        raise InputError(f"lora {file!r} is a folder: name the file in it{hint}")
    if path.is_file():
        return path.absolute()
    if path.exists():
        raise InputError(f"lora {file!r} is not a regular file: name a safetensors file")
    if file in (there := bundled_loras()):
        return there[file]
    try:
        return hub.find_file(*_hub_file(file, path))
    except hub.HubError as error:
        raise InputError(f"lora {file!r} is not a file here, and cannot be downloaded: {error}") from None


def _hub_file(file: str, path: Path) -> _HubFile:
    """Return the file on the hub that a LoRA is given as. Raises InputError if it is none.

    path: the path here that it would be otherwise, for error messages.
    """
    found = _HUB_FILE.fullmatch(file)
    if not found or Path(found[1]).exists():
        raise InputError(_missing(file, path))
    repo, revision, name = found[1], found[2] and unquote(found[2]), found[3]
    if not name.endswith(".safetensors"):
        raise InputError(f"lora {file!r} must name a safetensors file on the hub: {repo}/FILE.safetensors")
    if revision in EXPERTS:
        raise InputError(
            f"lora {file!r}: @{revision} after the id would be a revision: an expert comes last "
            f"('{repo}/{name}@{revision}'), and a revision of this name is given as a commit"
        )
    if revision is not None:
        check_name("revision", revision)
    return _HubFile(repo, name, revision)


def bundled_loras() -> dict[str, Path]:
    """Return the paths of the LoRAs that come with the package, by their names."""
    return {path.stem: path for path in sorted((bundled_folder().parent / "loras").glob("*.safetensors"))}


def _entries_on_hub(file: str) -> dict[str, Entry]:
    try:
        found = hub.read_tensors(*_hub_file(file, Path(file)))
    except hub.HubError as error:
        raise InputError(f"lora {file!r} cannot be read on the hub: {error}") from None
    if found is None:
        raise InputError(not_safetensors(file))
    return {key: Entry(*one) for key, one in found.items()}


def _download(file: str) -> Path:
    try:
        return hub.download_file(*_hub_file(file, Path(file)))
    except hub.HubError as error:
        raise InputError(f"lora {file!r} cannot be downloaded: {error}") from None


def _missing(file: str, path: Path) -> str:
    if page := _HUB_PAGE.match(file):
        revision = "" if page[2] == "main" else f"@{page[2]}"
        return f"lora {file!r} does not exist: give it as '{page[1]}{revision}/{page[3]}'"
    there = path.parent.glob("*.safetensors") if path.parent.is_dir() else ()
    siblings = [one.name for one in there if one.exists()]  # not broken links
    close = difflib.get_close_matches(path.name, [*siblings, *bundled_loras()], n=1)
    if close:
        found = str(path.parent / close[0]) if close[0] in siblings else close[0]
        return f"lora {file!r} does not exist: did you mean {found!r}?"
    return f"lora {file!r} does not exist: give a safetensors file, or org/name/FILE.safetensors on the hub"


def _hash(file: str, path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"lora {file!r} cannot be read: {error.strerror}") from None
