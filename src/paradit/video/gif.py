"""Encoder of looping GIFs, by pillow."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from paradit.video.frame import Frame

PALETTE_FRAMES = 16
"""Number of evenly spaced frames from which a GIF's palette is chosen.

All frames share one palette, which avoids flicker.
"""


class GifWriter:
    """Writer that holds all frames in memory, 3 bytes per pixel, until the end, to choose a common palette.

    Consecutive equal frames are stored once, with their total duration.
    """

    def __init__(self, path: Path, fps: float, tags: Mapping[str, str]) -> None:
        """Prepare to write a GIF. tags: metadata, of which a GIF stores only `comment`."""
        self._path, self._fps, self._comment = path, fps, tags.get("comment", "")
        self._frames: list[Frame] = []

    def write(self, frame: Frame) -> None:
        self._frames.append(frame.copy())

    def finish(self) -> None:
        palette = _palette(self._frames)
        pictures = [
            # Dithering would make still areas shimmer, and triple the size.
            Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            for frame in self._frames
        ]
        pictures[0].save(
            self._path,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=_durations(len(pictures), self._fps),
            loop=0,
            optimize=False,
            **({"comment": self._comment.encode()} if self._comment else {}),
        )

    def close(self) -> None:
        self._frames.clear()


def _palette(frames: list[Frame]) -> Image.Image:
    indices = np.linspace(0, len(frames) - 1, min(PALETTE_FRAMES, len(frames))).round().astype(int)
    montage = Image.fromarray(np.concatenate([frames[index] for index in indices]))
    return montage.quantize(256, method=Image.Quantize.MEDIANCUT, kmeans=1)


def _durations(num_frames: int, fps: float) -> list[int]:
    """Return how long each frame is shown, in milliseconds.

    A GIF counts durations in 1/100 s, so they vary from frame to frame to keep the mean frame rate.
    """
    ends = [round(100 * index / fps) for index in range(num_frames + 1)]
    return [10 * (end - start) for start, end in pairwise(ends)]
