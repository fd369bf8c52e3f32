"""Search for a model, and checks that its folder is complete before any of it is loaded.

Does not import torch. A model is given as the name of the bundled one, as a folder in diffusers' format, or
as a hub id.
"""

from __future__ import annotations

import difflib
import logging
import re
from importlib import resources
from pathlib import Path

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.files import named
from paradit.models import hub
from paradit.models.folder_check import (
    Incomplete,
    check_folder,
    has_weights,
    missing_weights,
    names_in,
    no_index,
    other_format,
)
from paradit.models.folder_json import components, read_index, wanted_weights
from paradit.models.published import published_models, published_spec
from paradit.models.spec import ModelSpec, read_spec

_LOG = logging.getLogger(__name__)
_NAMES = {"revision": r"\w[\w.-]*(?:/\w[\w.-]*)*", "variant": r"\w+"}
BUNDLED = "shapes"
"""Name of the model that comes with the package."""


def bundled_folder() -> Path:
    return Path(str(resources.files("paradit"))) / "assets" / BUNDLED


def check_name(option: str, value: str) -> None:
    """Raise InputError if a value is not a valid name of a "revision", or of a "variant"."""
    if not re.fullmatch(_NAMES[option], value):
        raise InputError(f"{option} {shown(value)} is not a valid name of a {option}")


def find_model(
    name: str, *, revision: str | None = None, variant: str | None = None, weights: bool = True
) -> Path:
    """Return the checked folder of the model called `name`; download only the small files of a hub model.

    If the hub cannot be asked, a copy of the model in the hub's cache is used, whichever program downloaded
    it. revision: a branch, tag or commit of a hub model; None: the newest. variant: a variant of weights,
    such as "fp16", that the model must have. weights: whether a cached copy must include all weights. They
    are not downloaded here: see `download_weights`. Raises InputError if there is no such model, or if it is
    incomplete, of an unsupported class, or without safetensors.
    """
    for option, value in (("revision", revision), ("variant", variant)):
        if value is not None:
            check_name(option, value)
    if not name.strip():
        raise InputError(
            f"model is empty ({name!r}): give '{BUNDLED}', a folder, or a hub id such as org/name"
        )
    folder = bundled_folder() if name == BUNDLED else named("model", name)
    if not folder.exists():
        if not _may_be_hub_id(name):
            raise InputError(_missing(name, folder))
        try:
            return _from_hub(name, revision, variant)
        except hub.HubError as error:
            return _from_cache(name, error, revision=revision, variant=variant, weights=weights)
    if revision is not None:
        raise InputError(f"revision is for models on the hub, but {name!r} is a folder here: leave it out")
    if not folder.is_dir():
        raise InputError(f"model {name!r} is not a folder: --model takes a folder in diffusers' format")
    try:
        check_folder(name, folder, hub.list_files(folder), variant=variant, local=True)
    except OSError as error:
        raise InputError(f"model {name!r} cannot be read: {error}") from None
    _LOG.info("model %s is the folder %s", name, folder)
    return folder


def find_spec(
    name: str, *, revision: str | None = None, variant: str | None = None, loads: bool = True
) -> ModelSpec:
    """Return the spec (sizes and costs) of the model called `name`, which is looked up as by `find_model`.

    loads: whether the model will be loaded. If not, its weights need not be present, and the spec of a
    published model is read without asking the hub. Raises InputError if there is no such model, or if it
    cannot be used.
    """
    # For a model that is not loaded, the package's own configuration will do, if it has one. It knows neither
    # revisions nor variants.
    if loads or revision or variant or name not in published_models() or not _may_be_hub_id(name):
        return read_spec(find_model(name, revision=revision, variant=variant, weights=loads), variant)
    try:
        # The text of this HubError is never shown: below, the package's own configuration is used instead.
        return read_spec(_from_cache(name, hub.HubError("it is not asked for"), weights=False))
    except InputError:
        return published_spec(name)


def download_weights(name: str, folder: Path, variant: str | None = None) -> None:
    """Download the weights of hub model `name` that are missing in `folder`, which `find_model` returned.

    Does nothing for models that are not on the hub. variant: a variant of weights, such as "fp16"; None: the
    usual weights. Raises InputError if the download fails.
    """
    if name == BUNDLED or Path(name).expanduser().exists():
        return
    here = hub.list_files(folder)
    parts = [part for part in components(read_index(folder)) if has_weights(part)]
    lacking = [part for part in parts if missing_weights(folder, part, here, variant)[0]]
    if not lacking:
        return
    try:
        revision = folder.name  # the cache names snapshot folders by revision
        files = hub.list_model(name, revision)
        wanted = {part: wanted_weights(folder / part, names_in(part, files), variant)[0] for part in lacking}
        hub.download_files(name, revision, [f"{part}/{file}" for part in lacking for file in wanted[part]])
    except hub.HubError as error:
        raise InputError(f"the weights of model {name!r} cannot be downloaded: {error}") from None
    read_spec(folder, variant)  # refuses weights that no module takes


def _from_hub(name: str, revision: str | None, variant: str | None) -> Path:
    files = hub.list_model(name, revision)
    if "model_index.json" not in files:
        other = other_format(name) or (f"{name}-Diffusers" if hub.exists(f"{name}-Diffusers") else None)
        raise InputError(no_index(name, other, files))
    folder = hub.download_configs(name, revision)
    # The names of files are those on the hub, because the weights are not downloaded yet.
    check_folder(name, folder, files, variant=variant)
    return folder


def _from_cache(
    name: str,
    error: hub.HubError,
    *,
    weights: bool,
    revision: str | None = None,
    variant: str | None = None,
) -> Path:
    """Return the newest complete snapshot of a hub model in the hub's cache on this machine.

    error: the reason why the hub was not asked. If there is no such snapshot, InputError repeats this reason.
    weights: whether a complete snapshot must have all weights.
    """
    first: InputError | None = None
    for folder in hub.snapshots(name, revision):
        try:
            files = hub.list_files(folder)
            check_folder(name, folder, files, variant=variant, local=weights, weights=weights)
            _LOG.info("using model %s from the hub's cache: %s", name, folder)
            return folder
        except InputError as problem:
            _LOG.info("not using the snapshot %s: %s", folder, problem)
            # The newest snapshot comes first; its problem is the one to report.
            first = first or problem
        except OSError as problem:
            first = first or InputError(f"model {name!r} cannot be read: {problem}")
    if first is None:
        raise InputError(
            f"model {name!r} is not a folder here, was not downloaded earlier, and cannot be downloaded: "
            f"{error}{_hint(name, error)}"
        ) from None
    if isinstance(first, Incomplete):
        raise InputError(f"{first}, and cannot be downloaded: {error}") from None
    raise first from None


def _hint(name: str, error: hub.HubError) -> str:
    close = difflib.get_close_matches(name, published_models(), n=1, cutoff=0.8) if error.is_missing else []
    other = other_format(name) or next(iter(close), None)
    return f" (did you mean {other!r}?)" if other else ""


def _may_be_hub_id(name: str) -> bool:
    """Whether `name` has the form `org/name` and is not a path into an existing folder."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return False
    return not Path(name).parent.exists()


def _missing(name: str, folder: Path) -> str:
    if page := re.match(r"https?://(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)", name):
        return f"model {name!r} does not exist: its hub id is {page[1]!r}"
    siblings = (
        [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    )
    close = difflib.get_close_matches(folder.name, [*siblings, BUNDLED], n=1)
    if close:
        found = close[0] if close[0] == BUNDLED else str(folder.parent / close[0])
        return f"model {name!r} does not exist: did you mean {found!r}?"
    return f"model {name!r} does not exist: give '{BUNDLED}', a folder, or a hub id such as org/name"
