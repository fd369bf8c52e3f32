"""Checkpoints in the formats of the models' authors, which `paradit convert` turns into model folders.

Does not import torch. Each model family may name a function that finds its checkpoints (`Family.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from paradit.config.errors import InputError
from paradit.config.plugins import imported
from paradit.files import folder_written_whole, reserved
from paradit.models.registry import FAMILIES
from paradit.models.spec import read_spec

Told = Callable[[str, int, int], None]
"""Type of a function that is told the progress: a file's name, bytes written so far, and all its bytes."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Parts of a checkpoint that the user names, because there are several or because they lie elsewhere."""

    transformer: str | None = None
    """Name of the transformer's folder in the checkpoint's folder."""
    text_encoder: Path | None = None
    """Folder of the text encoder."""


class Checkpoint(Protocol):
    """Interface of a checkpoint that was found and checked, except for its tensors."""

    def write(self, folder: Path, told: Told) -> None:
        """Write the converted model into an empty folder. Raises InputError or OSError."""


def find(folder: Path, given: Given) -> Checkpoint:
    """Return the checkpoint in a folder. Raises InputError if there is none, or if it is incomplete."""
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"checkpoint {str(folder)!r} {kind}: download a published checkpoint and name its folder"
        )
    if (folder / "model_index.json").exists():
        raise InputError(f"checkpoint {str(folder)!r} needs no conversion: it has a model_index.json")
    finders: Sequence[str] = [one.checkpoint for one in FAMILIES.all() if one.checkpoint]
    for finder in finders:
        found: Checkpoint | None = imported(finder)(folder, given)  # type: ignore[operator]
        if found is not None:
            return found
    raise InputError(
        f"checkpoint {str(folder)!r} is not in a format that can be converted: Open-Sora-Plan v1.3 has a "
        "folder vae/ and a folder with the transformer's config.json"
    )


def convert(checkpoint: Checkpoint, output: Path, told: Told) -> None:
    """Write a checkpoint's model folder, completely or not at all. Raises InputError.

    output: the folder's name, which must not exist.
    """
    if output.is_symlink() or output.exists():
        raise InputError(f"output {str(output)!r} exists: name a new folder")
    if not output.absolute().parent.is_dir():
        raise InputError(f"output {str(output)!r} cannot be made: its parent folder does not exist")
    try:
        with reserved("output", output), folder_written_whole(output) as part:
            checkpoint.write(part, told)
            read_spec(part)  # refuses what does not fit together
    except OSError as error:
        raise InputError(f"output {str(output)!r} cannot be written: {error.strerror or error}") from None
