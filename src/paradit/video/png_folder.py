"""Writer of lossless folders of PNG files: 00000.png, 00001.png and so on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from paradit.video.frame import Frame


class PngFolderWriter:
    """Writer that saves each frame as a PNG file in one folder."""

    def __init__(self, path: Path, tags: Mapping[str, str]) -> None:
        """Create the folder for the frames. tags: metadata to store in each PNG file."""
        self._path, self._tags = path, PngInfo()
        for name, text in tags.items():
            self._tags.add_itxt(name.capitalize(), text)
        self._count = 0
        path.mkdir()

    def write(self, frame: Frame) -> None:
        Image.fromarray(frame).save(self._path / f"{self._count:05d}.png", pnginfo=self._tags)
        self._count += 1

    def finish(self) -> None: ...

    def close(self) -> None: ...
