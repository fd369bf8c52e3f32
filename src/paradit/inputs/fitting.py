"""Fitting of a picture to the size of a video."""

from __future__ import annotations

import numpy as np
from PIL import Image

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""RGB picture `[H, W, 3]`, or frames `[F, H, W, 3]`, uint8."""


def fitted(picture: Image.Image, aspect: float, width: int, height: int, fit: str) -> Pixels:
    """Return an RGB picture at a size, uint8 `[height, width, 3]`, resampled once (Lanczos).

    aspect: width divided by height of the picture as it is shown; videos may have pixels that are not square.
    fit: `cover` cuts off what sticks out, equally on both sides; `contain` adds black bars; `stretch` changes
    the aspect. A picture that already has the size is unchanged.
    """
    size, wanted = (width, height), width / height
    if fit == "contain":
        inner = (width, round(width / aspect)) if aspect > wanted else (round(height * aspect), height)
        inner = (max(1, inner[0]), max(1, inner[1]))
        framed = Image.new("RGB", size)
        corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
        framed.paste(picture.resize(inner, Image.Resampling.LANCZOS), corner)
        return np.asarray(framed)
    box = (0.0, 0.0, float(picture.width), float(picture.height))
    if fit == "cover":
        box = _centre(picture.size, min(1.0, wanted / aspect), min(1.0, aspect / wanted))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS, box=box))


def _centre(size: tuple[int, int], across: float, down: float) -> tuple[float, float, float, float]:
    """Return the box in the middle of a picture that has fractions of its width and height."""
    width, height = max(1.0, size[0] * across), max(1.0, size[1] * down)  # Pillow wants at least a pixel
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height
