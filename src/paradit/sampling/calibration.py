"""Which of several ways to do the same is quickest here: by doing it, once for a machine and a shape."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

TIMES = 3
"""How often each way is gone before one is chosen; the shortest counts, since the first warms up."""
MARGIN = 0.03
"""How much quicker than the first, in parts of its time, another way must be to be taken instead."""


class Trial(Generic[T]):
    """Ways that give the same: each is gone in turn, then always the quickest. Nothing is done in vain."""

    def __init__(self, ways: Sequence[T]) -> None:
        """ways: the plainest first, which is kept unless another is clearly quicker."""
        self._ways = list(ways)
        self._times: list[list[float]] = [[] for _ in ways]
        self.best: T | None = self._ways[0] if len(ways) == 1 else None
        """The quickest, once that is known."""

    def next(self) -> T:
        """The way to go now."""
        if self.best is not None:
            return self.best
        return self._ways[min(range(len(self._ways)), key=lambda way: len(self._times[way]))]

    def took(self, way: T, time: float) -> None:
        """It was gone, and took so long."""
        self._times[self._ways.index(way)].append(time)
        if all(len(times) >= TIMES for times in self._times):
            shortest = [min(times) for times in self._times]
            quickest = min(range(len(shortest)), key=shortest.__getitem__)
            self.best = self._ways[quickest if shortest[quickest] < (1 - MARGIN) * shortest[0] else 0]


class Remembered:
    """What was quickest, in a file of the user's cache folder.

    A file that cannot be read or written is as none.
    """

    def __init__(self, path: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._path = path or cache / "paradit" / "quickest.json"

    def find(self, what: str) -> str | None:
        """What was remembered of `what`, on this machine."""
        found = self._read().get(f"{_machine()}: {what}")
        return found if isinstance(found, str) else None

    def keep(self, what: str, best: str) -> None:
        """Remember it, beside what other processes remember meanwhile."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({**self._read(), f"{_machine()}: {what}": best}, indent=1))
            part.replace(self._path)

    def _read(self) -> dict[str, object]:
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._path.read_text())
            if isinstance(content, dict):
                return content
        return {}


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.node()}, {gpu}, torch {torch.__version__}"
