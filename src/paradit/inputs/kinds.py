"""Formats of the files that are read, as pictures or as videos."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Picture formats that are read, by Pillow's names; its others run programs, or accept nearly any file."""
MOVING = ("PNG", "WEBP", "GIF", "AVIF")
"""Formats in which several pictures in a file are an animation."""
SAFE = {
    "format_whitelist": "mov,matroska,webm,avi,gif,apng,mpegts,mpeg,flv,asf,ogg,h264,hevc,m4v,mpegvideo,ivf",
    "protocol_whitelist": "none",
}
"""Options of FFmpeg that allow only these containers, and no reference to another file or address."""
BROKEN = (av.FFmpegError, OSError, ValueError, LookupError, ArithmeticError, MemoryError, EOFError)
"""Exceptions that PyAV and NumPy raise for files that are not valid."""
_FILTERS = threading.Lock()  # Python's list of warning filters belongs to all threads


def open_picture(path: Path) -> Image.Image:
    """Open a picture file, without decoding it. Raises whatever Pillow raises."""
    Image.init()
    with quiet():
        return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture, as far as its header says; an animation is not."""
    try:
        with open_picture(path) as picture, quiet():
            return num_moving(picture) == 1
    except Exception:  # Pillow raises many types for broken files
        return False


def is_video(path: Path) -> bool:
    """Return whether a file is a video, as far as its header says."""
    try:
        # An open file, not its name, which FFmpeg might take for an address.
        with path.open("rb") as file, av.open(file, options=SAFE) as container:
            return bool(container.streams.video)
    except BROKEN:
        return False


def num_moving(picture: Image.Image) -> int:
    """Return the number of frames of an animation; 1 for a picture that does not move."""
    return getattr(picture, "n_frames", 1) if picture.format in MOVING else 1


@contextmanager
def quiet() -> Iterator[None]:
    """Turn Pillow's warning about too many pixels into an exception, and drop its other warnings."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
