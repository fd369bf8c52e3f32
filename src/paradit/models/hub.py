"""Access to models on the Hugging Face hub and in its cache on this machine. Does not import torch.

Every request to the hub runs within `_asking`, which turns any failure into a `HubError`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from paradit.config.errors import InputError

_LOG = logging.getLogger(__name__)
SMALL_FILES = ["*.json", "*.txt", "*.model"]
"""Name patterns of the files of a model that are downloaded before any weights: configurations, indexes and
tokenizers."""
TIMEOUT = 10.0
"""Seconds to wait for the hub's answer before a model is looked up in the cache on this machine."""


class HubError(InputError):
    """Error for a failed request to the hub; the message says why, and what to do about it."""

    is_missing = False
    """Whether the hub answered that there is no such model."""


def list_model(repo: str, revision: str | None = None) -> set[str]:
    """Return the names of all files of `repo` on the hub. Raises HubError.

    revision: the branch, tag or commit to look at; None: the newest.
    """
    from huggingface_hub import HfApi

    with _asking(repo):
        info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
        return {file.rfilename for file in info.siblings or []}


def exists(repo: str) -> bool:
    """Return whether the hub says that it has `repo`; False also if the request fails."""
    try:
        list_model(repo)
    except HubError:
        return False
    return True


def download_configs(repo: str, revision: str | None = None) -> Path:
    """Download the small files of `repo`, and return the folder that they are in. Raises HubError."""
    from huggingface_hub import snapshot_download

    with _asking(repo), _quiet():
        # Without a revision in the call (None), the cache also records which revision is the newest.
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=SMALL_FILES))
    _LOG.info("the hub's configuration of %s is in %s", repo, folder)
    return folder


def download_files(repo: str, revision: str, names: Sequence[str]) -> None:
    """Download the named files of `repo` into the hub's cache. Raises HubError."""
    from huggingface_hub import snapshot_download

    _LOG.info("downloading %s of %s, revision %s", names, repo, revision)
    with _asking(repo):
        # allow_patterns are glob patterns, so characters that are special in them are escaped.
        snapshot_download(repo, revision=revision, allow_patterns=[escape(name) for name in names])


def find_file(repo: str, name: str, revision: str | None = None) -> Path | None:
    """Return the path of a file of `repo` in the hub's cache; None if it is on the hub only.

    The hub is asked for the file's newest commit. If it cannot be asked, a copy in the cache is used. Raises
    HubError if there is no such file.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        with _asking(repo):
            asked = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision), timeout=TIMEOUT)
        found = try_to_load_from_cache(repo, name, revision=asked.commit_hash or revision)
    except HubError:
        found = try_to_load_from_cache(repo, name, revision=revision)
        if not isinstance(found, str):
            raise
    return Path(found) if isinstance(found, str) else None


def read_tensors(
    repo: str, name: str, revision: str | None = None
) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """Return the dtypes and shapes of the tensors in a safetensors file on the hub.

    Only its header is downloaded. Returns None if the file is not a safetensors file. Raises HubError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    with _asking(repo):
        try:
            found = HfApi().parse_safetensors_file_metadata(repo, name, revision=revision)
        except SafetensorsParsingError:
            return None
        return {key: (one.dtype, tuple(one.shape)) for key, one in found.tensors.items()}


def download_file(repo: str, name: str, revision: str | None = None) -> Path:
    """Return the path of a file of `repo` in the hub's cache, after downloading it if needed.

    If the hub cannot be asked, a copy that is in the cache already is used. Raises HubError.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        list_model(repo)  # fails at once; a download would try several times
    except HubError:
        if isinstance(found := try_to_load_from_cache(repo, name), str):
            return Path(found)
        raise
    with _asking(repo):
        return Path(hf_hub_download(repo, name, revision=revision, etag_timeout=TIMEOUT))


def snapshots(repo: str, revision: str | None = None) -> list[Path]:
    """Return the snapshot folders of `repo` in the hub's cache, the newest known revision first.

    They include folders that programs other than ParaDiT downloaded. revision: the branch, tag or commit
    whose folder is wanted; None: all.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    stored = Path(HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"
    newest = stored / "refs" / (revision or "main")
    try:
        commit = newest.read_text(encoding="utf-8").strip() if newest.is_file() else revision or ""
        found = [path for path in (stored / "snapshots").glob("*") if path.is_dir()]
        if revision is not None:
            # A revision may also be the first digits of a commit's hash.
            return [path for path in found if path.name.startswith(commit)][:1]
        return sorted(found, key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)
    except OSError:
        return []


def snapshot_of(folder: Path) -> tuple[str, str] | None:
    """Return the hub id and the revision of a model's folder in a hub cache; None for any other folder."""
    snapshots, stored = folder.resolve().parent, folder.resolve().parent.parent
    if snapshots.name != "snapshots" or not stored.name.startswith("models--"):
        return None
    return stored.name.removeprefix("models--").replace("--", "/"), folder.resolve().name


def list_files(folder: Path) -> set[str]:
    """Return the relative paths of the files, which may be links, in `folder` and its direct subfolders.

    diffusers' format has no deeper folders.
    """
    near = [path for entry in folder.iterdir() for path in (entry.iterdir() if entry.is_dir() else [entry])]
    return {path.relative_to(folder).as_posix() for path in near if path.is_file()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager that stops the hub's library from writing progress bars and warnings."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    disabled, verbosity = are_progress_bars_disabled(), get_verbosity()
    disable_progress_bars()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if not disabled:
            enable_progress_bars()


@contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Context manager that turns any exception raised in it into a HubError about `repo`."""
    try:
        yield
    except Exception as error:
        from paradit.models.hub_errors import is_missing, reason

        failed = HubError(reason(repo, error))
        failed.is_missing = is_missing(error)
        _LOG.info("the hub does not give %s: %s", repo, failed)
        raise failed from None
