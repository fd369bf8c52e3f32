"""Writing of videos frame by frame, under a temporary name until they are complete. Torch-free."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from paradit.config.errors import InputError
from paradit.config.limits import whole
from paradit.files import behind_links, named, remove, temporary_name
from paradit.video.frame import Frame

FORMATS = (".mp4", ".webm", ".mov", ".mkv", ".gif")
"""Suffixes of the video formats that can be written; no suffix, or a final `/`, means a folder of PNG files.
"""
MAX_CRF = {".mp4": 51, ".webm": 63, ".mov": 51, ".mkv": 51}
"""Largest constant rate factor (CRF) of each video format that has one; it makes the smallest files."""
GIF_MAX_FPS = 50
"""Largest frame rate of a GIF; players slow down GIFs whose frames are shorter than 2/100 s."""


class Writer(Protocol):
    """Interface of the video writers, one for each format.

    `write` takes a frame, `finish` completes the file, and `close` frees all resources, finished or not.
    """

    def write(self, frame: Frame) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Video:
    """A video that is being written, frame by frame; `open_video` yields it."""

    def __init__(self, writer: Writer, width: int, height: int) -> None:
        self._writer = writer
        self._shape = (height, width, 3)
        self.num_frames = 0
        """Number of frames written so far."""

    def write(self, frame: Frame) -> None:
        """Append a frame, uint8 `[H, W, 3]`. Raises `ValueError` for another shape or type."""
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"a frame is uint8 {self._shape}, got {frame.dtype} {frame.shape}")
        self._writer.write(frame)
        self.num_frames += 1


@contextmanager
def open_video(
    path: str | Path,
    width: int,
    height: int,
    fps: float,
    *,
    overwrite: bool = False,
    part: Path | None = None,
    name_next: Callable[[Path], None] | None = None,
    tags: Mapping[str, str] | None = None,
    crf: int | None = None,
) -> Iterator[Video]:
    """Context manager that writes a video to `path`; it yields a `Video`, whose `write` takes each frame.

    The suffix of `path` selects the format (`FORMATS`). If `path` is a link, the file that it leads to is
    written. Once the file is complete, it is renamed to `path`. If the body of the with statement raises,
    nothing is left behind.

    part: path of the file while the video is written; None: a hidden name in the same folder. name_next:
    function called with the path of the complete file just before it is renamed. tags: metadata of the file,
    such as `title` and `comment`. crf: the constant rate factor, from 0 (lossless) to `MAX_CRF`; None: one
    without visible loss. Raises `InputError` as `check_target` does, or for an odd width or height.
    """
    check_target(path, fps=fps, overwrite=overwrite, crf=crf)
    if width % 2 or height % 2:
        raise InputError(f"the width and height of a video must be even, got {width}x{height}")
    target = behind_links(path)
    if part is None:
        part = temporary_name(target)
    remove(part)  # left by a run that was killed
    try:
        writer = _open(video_format(path), part, (width, height), fps, tags=tags or {}, crf=crf)
        try:
            video = Video(writer, width, height)
            yield video
            if not video.num_frames:
                raise ValueError(f"no frame was written to {target}")
            writer.finish()
        finally:
            writer.close()
        if name_next is not None:  # before the rename, after which this process may be killed at any moment
            name_next(part)
        _put(part, target)
    finally:
        remove(part)


def check_target(
    path: str | Path, *, fps: float | None = None, overwrite: bool = False, crf: int | None = None
) -> None:
    """Refuse a path that a video cannot be written to, before any work is done for the video. Makes no file.

    Raises `InputError` for an unknown suffix, for an `fps` or a `crf` that the format does not allow, for a
    folder that holds other files or must not be replaced, and as `check_file` does.
    """
    named("output", path)
    kind, target = video_format(path), Path(path)
    if kind and kind not in FORMATS:
        raise InputError(
            f"output {str(path)!r}: unknown suffix {kind!r}; known: {', '.join(FORMATS)} "
            "(no suffix: a folder of PNG files)"
        )
    if kind == ".gif" and fps is not None and fps > GIF_MAX_FPS:
        raise InputError(
            f"fps must be at most {GIF_MAX_FPS} in a GIF, got {fps:g}: use {GIF_MAX_FPS}, or .mp4"
        )
    if crf is not None and kind not in MAX_CRF:
        raise InputError(f"crf is for {', '.join(MAX_CRF)}, but the output is {str(path)!r}: leave it out")
    if crf is not None:
        whole("crf", crf, least=0, most=MAX_CRF[kind])
    if not kind and os.path.isfile(target):  # noqa: PTH113 (never raises)
        raise InputError(f"output {str(path)!r} is a file: without a suffix, name a folder for PNG files")
    if kind or not os.path.isdir(target):  # noqa: PTH112
        check_file("output", target, overwrite=overwrite)
        return
    if os.path.ismount(target) or os.path.samefile(target, os.curdir):  # noqa: PTH121
        raise InputError(
            f"output folder {str(path)!r} is the current folder or a mount point, and cannot be replaced: "
            f"name a folder in it, such as {str(target / 'frames')!r}"
        )
    content = [entry.name for entry in target.iterdir()]
    if any(not re.fullmatch(r"\d{5,}\.png", name) for name in content):
        raise InputError(f"output folder {str(path)!r} has files that are not frames: name a new folder")
    if content and not overwrite:
        raise InputError(f"output folder {str(path)!r} exists: name another one, or use --overwrite")
    check_folder_writable("output", _folder_of(target))


def growing_name(path: str | Path) -> Path | None:
    """Return the path of a long video's file while it is being written, such as `v.part.mp4` for `v.mp4`.

    Returns None for a GIF, which is written only when all frames are there; other formats play while they
    grow.
    """
    target = behind_links(path) if Path(path).is_symlink() else Path(path)
    if video_format(path) == ".gif":
        return None
    return target.with_name(f"{target.stem}.part{target.suffix}")


def check_file(option: str, path: Path, *, overwrite: bool = False) -> None:
    """Refuse to write a file that exists already, or whose folder is missing or cannot be written to.

    option: the name of the file in the error message, such as "output". overwrite: whether an existing file
    is accepted. Raises `InputError`; makes no file.
    """
    named(option, path)
    if path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a folder: name a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {str(path)!r} is a device or a pipe: name a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{option} {str(path)!r} exists: name another file, or use --overwrite")
    check_folder_writable(option, _folder_of(path))


def _folder_of(path: Path) -> Path:
    """Return the folder that a file is written to; for a link, the folder of the file that it leads to."""
    return behind_links(path).parent if path.is_symlink() else path.parent


def check_folder_writable(option: str, folder: Path) -> None:
    """Refuse a folder that is missing or in which no file can be made. Raises `InputError`.

    option: the name of the file or folder in the error message.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{option}: the folder {str(folder)!r} {what}")
    try:  # trying is the only sure way: permissions, read-only and virtual file systems, root
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{option}: the folder {str(folder)!r} cannot be written ({error.strerror})"
        ) from None


def video_format(path: str | Path) -> str:
    """Return the lower-case suffix that selects a video's format; empty for a folder of PNG files."""
    suffix = Path(path).suffix.lower()
    is_folder = str(path).endswith("/") or os.path.isdir(path)  # noqa: PTH112 (never raises)
    return "" if is_folder and suffix not in FORMATS else suffix


def _open(
    kind: str,
    part: Path,
    size: tuple[int, int],
    fps: float,
    *,
    tags: Mapping[str, str],
    crf: int | None,
) -> Writer:
    # Formats are imported only when needed, because PyAV and pillow load slowly.
    if kind == ".gif":
        from paradit.video.gif import GifWriter

        return GifWriter(part, fps, tags)
    if kind == "":
        from paradit.video.png_folder import PngFolderWriter

        return PngFolderWriter(part, tags)
    from paradit.video.encoded import EncodedWriter

    return EncodedWriter(part, kind, size, fps, tags=tags, crf=crf)


def _put(part: Path, target: Path) -> None:
    """Rename the complete video to its final name, replacing any older video of that name."""
    if part.is_dir() and target.is_dir():
        # A folder cannot replace one that is not empty: move that aside first.
        old = temporary_name(target)
        target.rename(old)
        try:
            part.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
    else:
        part.replace(target)
