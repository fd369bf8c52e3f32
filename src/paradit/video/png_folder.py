"""A folder of PNG: 00000.png, 00001.png and so on, without loss."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from paradit.video.writer import Frame


class PngFolderWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        path.mkdir()

    def write(self, frame: Frame) -> None:
        Image.fromarray(frame).save(self._path / f"{self._count:05d}.png")
        self._count += 1

    def finish(self) -> None: ...

    def close(self) -> None: ...
