"""Copies of the pictures and videos that a run was given, in the run's folder. Torch-free.

    inputs/HASH/NAME    a file that a request gives, by the SHA-256 hash of its content and its own name

The paths in `run.json` are relative to the run's folder, so that it can be moved.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.config.request_inputs import INPUTS
from paradit.engine.job import Job, Run
from paradit.files import temporary_name
from paradit.inputs.files import sha256

FOLDER = "inputs"


def copied(run: Run, folder: Path) -> Run:
    """Copy all files that a run's requests give into its folder, and return the run with the copies' paths.

    Raises OSError.
    """
    copies: dict[str, str] = {}

    def copy(name: str, path: str) -> str:  # noqa: ARG001
        if path not in copies:
            copies[path] = str(_copy(Path(path), folder.absolute() / FOLDER))
        return copies[path]

    return _with_paths(run, copy)


def relative(run: Run, folder: Path) -> Run:
    """Return the run with paths of files in its folder relative to the folder."""
    base = folder.absolute()

    def shorten(name: str, path: str) -> str:  # noqa: ARG001
        return str(Path(path).relative_to(base)) if Path(path).is_relative_to(base) else path

    return _with_paths(run, shorten)


def absolute(run: Run, folder: Path) -> Run:
    """Return the run with absolute paths of the files in its folder."""
    return _with_paths(run, lambda _, path: str(folder.absolute() / path))


def check_copies(run: Run, folder: Path) -> None:
    """Refuse copies that are missing, or are not what the run was given. Raises InputError."""
    base = folder.absolute() / FOLDER

    def check(name: str, path: str) -> str:
        copy = Path(path)
        if copy.is_relative_to(base):
            if not copy.is_file():
                raise InputError(f"{name} {shown(copy.name)} of the run is missing: {shown(path)}")
            if sha256(copy) != copy.parent.name:
                raise InputError(f"{name} {shown(copy.name)} of the run has changed: {shown(path)}")
        return path

    _with_paths(run, check)


def _with_paths(run: Run, change: Callable[[str, str], str]) -> Run:
    """Return the run with each path of a picture or video replaced by what `change(field, path)` returns."""

    def changed(job: Job) -> Job:
        values = {name: getattr(job.request, name) for name in INPUTS}
        paths: dict[str, Any] = {
            name: change(name, path) for name, path in values.items() if path is not None
        }
        return replace(job, request=replace(job.request, **paths)) if paths else job

    return replace(run, jobs=tuple(changed(job) for job in run.jobs))


def _copy(source: Path, into: Path) -> Path:
    """Copy a file, readable by its owner only, and return the copy's path."""
    into.mkdir(mode=0o700, exist_ok=True)
    part = temporary_name(into / "copy")
    try:
        with source.open("rb") as content, open(part, "xb", opener=_private) as copy:
            shutil.copyfileobj(content, copy, 2**20)
            copy.flush()
            os.fsync(copy.fileno())
        kept = into / sha256(part) / source.name
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        part.replace(kept)
    finally:
        part.unlink(missing_ok=True)
    return kept


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
