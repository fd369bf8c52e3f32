"""Files of pictures and videos that Python code gives as values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from paradit.config.errors import InputError
from paradit.config.limits import typed
from paradit.inputs.pictures import upright_rgb
from paradit.inputs.videos import ARRAY


def save_value(name: str, value: object, folder: Path) -> Path:
    """Write a picture or video that is given as a value to a file without loss, and return its path.

    name: the request's field; its value may be a PIL image or an array of a picture `[H, W, 3]`, or for
    `video` an array of frames `[F, H, W, 3]`. Raises InputError for any other value.
    """
    shape = "[F, H, W, 3]" if name == "video" else "[H, W, 3]"
    if isinstance(value, Image.Image) and name != "video":
        try:
            value = np.asarray(upright_rgb(name, value))
        except InputError:
            raise
        except Exception:  # Pillow reads an image's file only now, and raises many types if it is broken
            raise InputError(f"{name} cannot be decoded: its file is broken or cut off") from None
    if not isinstance(value, np.ndarray):
        others = "" if name == "video" else "a PIL image, "
        raise InputError(f"{name} must be a path, {others}or an array {shape}, got {typed(value)}")
    if value.dtype != np.uint8 or value.ndim != shape.count(",") + 1 or value.shape[-1] != 3:
        raise InputError(
            f"{name} must be an array {shape} of uint8, got {list(value.shape)} of {value.dtype}"
        )
    if not value.size:
        raise InputError(f"{name} is empty: it has the shape {list(value.shape)}")
    if name == "video":
        path = folder / f"{name}{ARRAY}"
        np.save(path, value, allow_pickle=False)
    else:
        path = folder / f"{name}.png"
        Image.fromarray(value).save(path, compress_level=1)
    return path
