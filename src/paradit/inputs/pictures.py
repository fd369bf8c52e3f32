"""Reader of picture files: checked, upright, over black, and fitted to the size of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.inputs.files import MAX_PIXELS, check_pixels, input_file, stamp
from paradit.inputs.fitting import Pixels, fitted
from paradit.inputs.kinds import is_video, num_moving, open_picture, quiet


def picture_size(name: str, path: str) -> tuple[int, int]:
    """Return the width and height of a picture file when it is upright, after decoding all of it once.

    name: name of the option that gave the path. Raises InputError if the file is not one whole picture.
    """
    found = input_file(name, path)
    return _size(name, found, stamp(found))


def fitted_picture(path: str | Path, width: int, height: int, fit: str) -> Pixels:
    """Return a picture fitted to a size, uint8 `[height, width, 3]`: equal files give equal values.

    It is turned as its EXIF data say, and laid over black where it is transparent; colour profiles are not
    applied. fit: `cover`, `contain` or `stretch`. Raises InputError.
    """
    with _opened("image", input_file("image", str(path))) as picture:
        upright = upright_rgb(f"image {shown(Path(path).name)}", picture)
    return fitted(upright, upright.width / upright.height, width, height, fit)


@lru_cache(maxsize=256)
def _size(name: str, path: Path, _stamp: tuple[int, int, int]) -> tuple[int, int]:
    with _opened(name, path) as picture:
        return upright_rgb(f"{name} {shown(path.name)}", picture).size


@contextmanager
def _opened(name: str, path: Path) -> Iterator[Image.Image]:
    """Open a picture file; raise InputError for one that is not valid, also from within the `with` block."""
    said = f"{name} {shown(path.name)}"
    try:
        with open_picture(path) as picture:
            check_pixels(name, path, *picture.size)
            if (number := num_moving(picture)) > 1:
                raise InputError(f"{said} is animated ({number} frames): save one of them as a picture")
            yield picture
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = MAX_PIXELS // 10**6
        raise InputError(f"{said} has too many pixels: scale it down to at most {most} million") from None
    except UnidentifiedImageError:
        raise InputError(f"{said} {_what_instead(path)}") from None
    except Exception:  # Pillow raises many types for broken files
        raise InputError(f"{said} is broken or cut off: it cannot be decoded") from None


def _what_instead(path: Path) -> str:
    """Return the end of an error message about a file that cannot be read as a picture."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif"):
        return "is an HEIC picture, which is not supported: save it as JPEG or PNG"
    if is_video(path):
        return "is a video: give it as video, or save one of its frames as a picture"
    if start[:4] in (b"II*\0", b"MM\0*"):
        return "is a TIFF file that is broken, or has values of another kind: save it as RGB with 8 bits"
    return "is not a picture in a known format: save it as PNG or JPEG"


UNSUPPORTED = {
    "F": "floating-point values",
    "I": "grey values with 32 bits or a sign",
    "LAB": "CIELAB colours",
}
"""Pillow's modes that are refused: those with a range that is not known, and one that cannot be converted."""
_BITS, _PHOTOMETRIC = 258, 262
"""Numbers of TIFF tags: bits of a value, and what the values mean; 0: they rise from white to black."""


def _grey_of_8_bits(picture: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Return a picture in grey with 16 bits as one with 8 bits; Pillow would cut its values off at 255.

    tags: the tags of a TIFF file, which may hold fewer bits, or a negative; Pillow does not apply either.
    """
    grey, most = np.asarray(picture).astype(np.int64), 2 ** tags.get(_BITS, (16,))[0] - 1
    there = grey != picture.info.get("transparency")
    if tags.get(_PHOTOMETRIC) == 0:
        grey = most - grey
    made = Image.fromarray(((grey * 255 + most // 2) // most).clip(0, 255).astype(np.uint8))
    if not there.all():
        made.putalpha(Image.fromarray(np.where(there, 255, 0).astype(np.uint8)))
    return made


def upright_rgb(said: str, picture: Image.Image) -> Image.Image:
    """Return a picture in RGB with 8 bits, turned upright and laid over black.

    said: what error messages call the picture. Raises InputError if its kind of values is not supported, and
    whatever Pillow raises if it cannot be decoded.
    """
    with quiet():
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    of_16_bits = upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format == "PPM")
    if upright.mode in UNSUPPORTED and not of_16_bits:
        kind = UNSUPPORTED[upright.mode]
        raise InputError(f"{said} has {kind}, which are not supported: save it as RGB with 8 bits")
    if of_16_bits:
        upright = _grey_of_8_bits(upright, getattr(picture, "tag_v2", {}))
    if upright.has_transparency_data:
        over = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over)
    return upright.convert("RGB")
