"""Files that are whole under their name, or not there. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path


def temporary_name(target: Path) -> Path:
    """A name beside `target`, on the same file system, that nobody else has."""
    return target.absolute().parent / f".paradit-{os.getpid()}-{secrets.token_hex(4)}.part"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that survives the machine's own end, or none. Raises OSError."""
    part = temporary_name(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path, pids: Collection[int]) -> None:
    """Remove what these processes, which have ended, left under temporary names."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".paradit-*-*.part"):
            match = re.fullmatch(r"\.paradit-(\d+)-\w+\.part", path.name)
            if match and int(match[1]) in pids:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
