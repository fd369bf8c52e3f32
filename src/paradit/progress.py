"""How long work tells what it is doing. Torch-free; the command line has the forms that print."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Follows the stages of a run and keeps their seconds; this base prints nothing.

    Work calls `stage` around each stage and `step` as parts of it are done. Subclasses show it by
    overriding `started`, `stepped`, `finished` and `warn`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Seconds by stage, in the order in which the stages began; a stage run twice adds up."""

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[None]:
        """Time the body as stage `name`, of `total` steps; 0: nobody knows how many."""
        start = time.monotonic()
        self.started(name, total)
        yield
        took = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.finished(name, took)

    def step(self, name: str, done: int) -> None:
        """Say that `done` steps of stage `name` are done."""
        self.stepped(name, done)

    def started(self, name: str, total: int) -> None: ...

    def stepped(self, name: str, done: int) -> None: ...

    def finished(self, name: str, seconds: float) -> None: ...

    def queue(self, block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> None:
        """Say how far a long video's queue of blocks is, after a round.

        block: the cleanest one in it, from 1. num_blocks: of the video; None: without end. levels: how many
        of its `steps` the noisiest has taken, and the cleanest.
        """

    def warn(self, message: str) -> None:
        """Say what does not go as it was meant to, while the work goes on."""
        warnings.warn(message, stacklevel=2)
