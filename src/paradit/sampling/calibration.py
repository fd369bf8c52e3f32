"""Which of several ways to do the same is quickest here: by trying, once for a machine and a shape."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

T = TypeVar("T")

ROUNDS = 3
MARGIN = 0.03
"""How much quicker than the first, in parts of its time, another way must be to be taken instead."""


def quickest(
    ways: Sequence[T],
    take: Callable[[T], object],
    from_all_ranks: Callable[[int], list[int]],
    device: torch.device,
) -> T:
    """The way that takes least time on the slowest rank; the first unless another is clearly quicker.

    take: goes one way once. from_all_ranks: every rank's number, so that all decide alike.
    """
    times: list[list[int]] = [[] for _ in ways]
    for turn in range(ROUNDS + 1):
        for way, taken in zip(ways, times, strict=True):
            from_all_ranks(0)  # all begin together
            began = time.perf_counter()
            take(way)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took = max(from_all_ranks(round(1e6 * (time.perf_counter() - began))))
            if turn:  # the first time warms up
                taken.append(took)
    medians = [median(taken) for taken in times]
    best = min(range(len(ways)), key=medians.__getitem__)
    return ways[best] if medians[best] < (1 - MARGIN) * medians[0] else ways[0]


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
