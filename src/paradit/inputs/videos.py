"""Reader of video files: checked, upright, at a rate of frames, and fitted to the size of a video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image

from paradit.config.errors import InputError
from paradit.config.limits import shown
from paradit.inputs.files import check_pixels, input_file, stamp
from paradit.inputs.fitting import Pixels, fitted
from paradit.inputs.kinds import BROKEN, SAFE, is_picture

PRECISE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
)
"""Interpolation flags for conversions between RGB and YUV that keep the picture's brightness.

Without the last three flags, each conversion darkens the picture by one level.
"""
ARRAY = ".npy"
"""Suffix of files of frames without loss, `[F, H, W, 3]` uint8 as NumPy saves them, at the request's rate."""
UNKNOWN = "cannot be decoded: it is broken, cut off, or not a known video"


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """Facts about a video file that decide the size and the length of the video to make."""

    width: int
    height: int
    fps: float
    """Mean frames per second of the file."""
    total: int
    """Number of frames of the whole file after conversion, as the file says; 0 if it does not."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """Open video file."""

    size: tuple[int, int]
    """Width and height in pixels, upright and with square pixels."""
    fps: Fraction
    seconds: Fraction
    """Length that the file says; 0 if it does not."""
    frames: Iterator[tuple[Fraction, Pixels]]
    """Frames in RGB, upright, with their times in seconds."""


def video_facts(name: str, path: str, fps: float) -> VideoFacts:
    """Return the facts that a video file states about itself.

    name: name of the option that gave the path. fps: rate to convert the video to. Raises InputError if the
    file is not a video.
    """
    found = input_file(name, path)
    return _facts(name, found, stamp(found), fps)


def count_frames(name: str, path: str, fps: float, most: int) -> int:
    """Return the number of frames of a video converted to a rate, or `most` if there are more.

    The frames are decoded to count them. name: name of the option that gave the path. Raises InputError if
    they cannot be decoded.
    """
    found = input_file(name, path)
    return _count(name, found, stamp(found), fps, most)


def fitted_video(
    path: str | Path, width: int, height: int, fit: str, *, fps: float, num_frames: int
) -> Pixels:
    """Return the first frames of a video at a rate and a size, uint8 `[num_frames, height, width, 3]`.

    Equal files give equal values. The frames nearest in time are taken; the last frame of a video that ends
    sooner is repeated. Frames are turned as the file says, and laid over black where they are
    transparent. fit: `cover`, `contain` or `stretch`. Raises InputError.
    """
    made = np.empty((num_frames, height, width, 3), np.uint8)
    count, before = 0, None
    with _opened("video", input_file("video", str(path)), fps) as video:
        aspect = video.size[0] / video.size[1]
        for frame in islice(_at_rate(video, fps), num_frames):
            if frame is before:  # shown again, since the rate is higher than the file's
                made[count] = made[count - 1]
            else:
                made[count] = fitted(Image.fromarray(frame), aspect, width, height, fit)
            count, before = count + 1, frame
    made[count:] = made[count - 1]
    return made


@lru_cache(maxsize=256)
def _facts(name: str, path: Path, _stamp: tuple[int, int, int], fps: float) -> VideoFacts:
    with _opened(name, path, fps) as video:
        last = video.seconds - 1 / (2 * video.fps)  # as in `_at_rate`, if all frames last equally long
        total = int(last * _exact(fps)) + 1 if video.seconds else 0
        return VideoFacts(width=video.size[0], height=video.size[1], fps=float(video.fps), total=total)


@lru_cache(maxsize=256)
def _count(name: str, path: Path, _stamp: tuple[int, int, int], fps: float, most: int) -> int:
    with _opened(name, path, fps) as video:
        return sum(1 for _ in islice(_at_rate(video, fps), most))


@contextmanager
def _opened(name: str, path: Path, fps: float) -> Iterator[_Opened]:
    """Open a video file; raise InputError for one that is not valid, also from within the `with` block.

    fps: frames per second of an array, which has no rate of its own.
    """
    said = f"{name} {shown(path.name)}"
    if is_picture(path):
        raise InputError(f"{said} is a picture: give it as image")
    try:
        if path.suffix == ARRAY:
            yield _array(name, path, fps)
            return
        # An open file, not its name, which FFmpeg might take for an address.
        with path.open("rb") as file, av.open(file, "r", options=SAFE) as container:
            yield _video(name, path, container)
    except InputError:
        raise
    except BROKEN:
        raise InputError(f"{said} {UNKNOWN}") from None


def _array(name: str, path: Path, fps: float) -> _Opened:
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy parses the header as Python, which raises many types for broken files
        raise InputError(f"{name} {shown(path.name)} {UNKNOWN}") from None
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise InputError(
            f"{name} {shown(path.name)} must hold uint8 frames [F, H, W, 3], got {frames.dtype} "
            f"{list(frames.shape)}"
        )
    number, height, width, _ = frames.shape
    check_pixels(name, path, width, height)
    rate = _exact(fps)
    return _Opened(
        size=(width, height),
        fps=rate,
        seconds=number / rate,
        frames=((index / rate, np.asarray(frame)) for index, frame in enumerate(frames)),
    )


def _video(name: str, path: Path, container: InputContainer) -> _Opened:
    said = f"{name} {shown(path.name)}"
    if not container.streams.video:
        raise InputError(f"{said} has no video stream, only sound or data")
    stream = container.streams.video[0]
    if stream.codec_context is None:  # FFmpeg has no decoder for it
        raise InputError(f"{said} {UNKNOWN}")
    stream.thread_type = "AUTO"
    check_pixels(name, path, stream.codec_context.width, stream.codec_context.height)
    decoded = _decoded(name, path, container, stream)
    first = next(decoded, None)
    if first is None:
        raise InputError(f"{said} has no frames")
    rate = Fraction(stream.average_rate or stream.guessed_rate or 0) or Fraction(25)
    return _Opened(
        size=_shown_size(first, stream.sample_aspect_ratio),
        fps=rate,
        seconds=_seconds(container, stream, rate),
        frames=_timed(first, decoded, rate),
    )


def _decoded(name: str, path: Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield a video's frames in the order in which they are shown. Raises InputError if it is cut off."""
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise InputError(f"{name} {shown(path.name)} is broken or cut off: not all of it can be decoded")
        for frame in packet.decode():
            check_pixels(name, path, frame.width, frame.height)
            yield frame


def _seconds(container: InputContainer, stream: VideoStream, rate: Fraction) -> Fraction:
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if container.duration:
        return Fraction(container.duration, av.time_base)
    return stream.frames / rate


def _timed(
    first: VideoFrame, decoded: Iterator[VideoFrame], rate: Fraction
) -> Iterator[tuple[Fraction, Pixels]]:
    """Yield frames in RGB with their times, which rise; a frame that would be no later is left out."""
    before = None
    for index, frame in enumerate(chain((first,), decoded)):
        time = index / rate if frame.pts is None else frame.pts * (frame.time_base or 1 / rate)
        if before is None or time > before:
            yield time, _rgb(frame)
            before = time


def _at_rate(video: _Opened, fps: float) -> Iterator[Pixels]:
    """Yield the frames nearest to the times 0, 1 / fps, 2 / fps, ... after the first frame's.

    The last frame lasts as long as the mean of the others. Half-way belongs to the earlier frame, also if the
    file has rounded its times to milliseconds.
    """
    step, number, count = 1 / _exact(fps), 0, 0
    near = min(Fraction(1, 1000), step / 4)
    start = before = Fraction(0)
    shown_now: Pixels | None = None
    for time, frame in video.frames:
        if shown_now is None:
            start = time
        else:
            while number * step <= (before + time) / 2 - start + near:
                yield shown_now
                number += 1
        before, shown_now, count = time, frame, count + 1
    lasts = (before - start) / (count - 1) if count > 1 else 1 / video.fps
    while shown_now is not None and number * step <= before - start + lasts / 2 + near:
        yield shown_now
        number += 1


def _exact(fps: float) -> Fraction:
    """Return frames per second as the fraction that is meant: 23.976 is 24000/1001."""
    return Fraction(fps).limit_denominator(1001)


def _shown_size(frame: VideoFrame, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Return a frame's width and height, upright and with square pixels.

    pixel_aspect: width divided by height of a pixel; None or 0: they are square.
    """
    size = (max(1, round(frame.width * (pixel_aspect or 1))), frame.height)
    return (size[1], size[0]) if frame.rotation % 180 else size


def _rgb(frame: VideoFrame) -> Pixels:
    """Return a frame as uint8 `[H, W, 3]`, upright and laid over black."""
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba", interpolation=PRECISE).astype(np.uint16)
        rgb = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    else:
        rgb = np.asarray(frame.to_ndarray(format="rgb24", interpolation=PRECISE), np.uint8)
    return np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))
