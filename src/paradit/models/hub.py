"""Models on the Hugging Face hub: first the small files, to be checked, then the weights. Torch-free."""

from __future__ import annotations

from pathlib import Path

from paradit.errors import InputError

SMALL_FILES = ["*.json", "*.txt", "*.model"]
"""Configurations, indexes and tokenizers."""
TIMEOUT = 10.0
"""Seconds to wait for the hub to answer before what was downloaded earlier is looked at."""


def download_configs(repo: str) -> tuple[Path, set[str]]:
    """Folder with the small files of `repo`, and the names of all of its files.

    Without a connection, what an earlier download left is taken. Raises `InputError` if there is nothing.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(repo, timeout=TIMEOUT)
        files = {file.rfilename for file in info.siblings or []}
        # By no revision: only so does the cache note which one is the newest, for use without a connection.
        folder = Path(snapshot_download(repo, allow_patterns=SMALL_FILES))
    except GatedRepoError:
        raise InputError(
            f"model {repo!r} is gated: ask for access on its page, then 'hf auth login'"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"model {repo!r} is neither a folder here nor on the hub (if it is private: 'hf auth login')"
        ) from None
    except Exception as error:  # connection errors: their classes differ between the hub's HTTP libraries
        return _earlier_download(repo, error)
    return folder, files


def download_weights(repo: str, folder: Path, components: list[str]) -> None:
    """Download the safetensors of `components` of `repo` to `folder`, a snapshot by `download_configs`."""
    from huggingface_hub import snapshot_download

    patterns = [f"{component}/*.safetensors" for component in components]
    # A snapshot's folder is named after its revision.
    snapshot_download(repo, revision=folder.name, allow_patterns=patterns)


def _earlier_download(repo: str, error: Exception) -> tuple[Path, set[str]]:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except Exception:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model {repo!r} is not a folder here, was not downloaded earlier, "
            f"and the hub does not answer ({reason})"
        ) from None
    return folder, list_files(folder)


def list_files(folder: Path) -> set[str]:
    """The files in `folder` and its subfolders, which may be links; diffusers' format goes no deeper."""
    near = [path for entry in folder.iterdir() for path in (entry.iterdir() if entry.is_dir() else [entry])]
    return {path.relative_to(folder).as_posix() for path in near if path.is_file()}
