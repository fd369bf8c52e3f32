"""Checks of the files of pictures and videos before they are opened, and their hashes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.files import named

MAX_PIXELS = 89_478_485
"""Largest number of pixels of a picture, and of a video's frame.

It is Pillow's limit, above which it warns of files that are small and decode to gigabytes; RGB values of such
a picture take 270 MB.
"""
MIN_SIDE = 16
"""Smallest width and height of a picture or video, in pixels, about those of a model's smallest token."""


def input_file(name: str, path: str) -> Path:
    """Return the absolute path of a file, after checking that it exists and is not empty. Raises InputError.

    name: name of the option that gave the path, for error messages.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", path):
        raise InputError(f"{name} {shown(path)} is a URL: download it first, and name the file")
    found = named(name, path).absolute()
    try:
        if found.is_dir():
            raise InputError(f"{name} {shown(path)} is a folder: name a file")
        if not found.is_file():
            why = "is not a regular file: name one" if found.exists() else "does not exist"
            raise InputError(f"{name} {shown(path)} {why}")
        with found.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"{name} {shown(path)} cannot be read: {error.strerror}") from None
    if empty:
        raise InputError(f"{name} {shown(path)} is empty")
    return found


def check_pixels(name: str, path: Path, width: int, height: int) -> None:
    """Raise InputError for a picture or video with too many pixels, or with too few."""
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} {shown(path.name)} has {width}x{height} pixels: scale it down to at most "
            f"{MAX_PIXELS // 10**6} million"
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{name} {shown(path.name)} has {width}x{height} pixels: each side must have at least {MIN_SIDE}"
        )


def stamp(path: Path) -> tuple[int, int, int]:
    """Return values that change when a file does, for caches of what is known of it."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def sha256(path: Path) -> str:
    """Return the SHA-256 hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
