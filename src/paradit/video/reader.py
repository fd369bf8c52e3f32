"""Reader of video files, for tests and tools. Torch-free."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image

from paradit.config.errors import InputError
from paradit.inputs.videos import PRECISE
from paradit.video.frame import Frame


def read_video(path: str | Path) -> tuple[Frame, float]:
    """Return all frames of a video file, uint8 `[F, H, W, 3]`, and its mean frames per second.

    path: a video file, or a folder of PNG files, for which the frames per second are not known and returned
    as 0. Raises `InputError` if the file is not a valid video.
    """
    if Path(path).is_dir():
        return _read_folder(Path(path)), 0.0
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            frames = [
                frame.to_ndarray(format="rgb24", interpolation=PRECISE) for frame in file.decode(stream)
            ]
            rate = stream.average_rate
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a video ({error})") from None
    if not frames:
        raise InputError(f"{str(path)!r} has no frames")
    return np.stack(frames), float(rate or 0)


def _read_folder(folder: Path) -> Frame:
    frames = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as picture:
            frames.append(np.asarray(picture.convert("RGB")))
    if not frames:
        raise InputError(f"{str(folder)!r} has no frames")
    return np.stack(frames)
