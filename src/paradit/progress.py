"""How long work tells what it is doing: as events, through one `emit`. Torch-free."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that has happened. The classes of `engine.events` are all that there are."""

    job: int | None = None
    """Index of the request that it is about; None: about none, or all."""
    number: int = 0
    """Place among the events of its job, counted from 1 when they are kept."""


@dataclass(frozen=True, kw_only=True)
class StageEvent(Event):
    """An event of a stage."""

    stage: str


@dataclass(frozen=True, kw_only=True)
class StageStarted(StageEvent):
    """A stage has begun."""

    total: int
    """Number of its steps; 0: nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Stepped(StageEvent):
    """So many steps of a stage are done."""

    done: int


@dataclass(frozen=True, kw_only=True)
class StageEnded(StageEvent):
    """A stage is done."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class QueueMoved(Event):
    """The queue of a long video's blocks has moved on by a round."""

    block: int
    """The cleanest one in it, from 1."""
    num_blocks: int | None
    """Number of blocks of the video; None: without end."""
    levels: tuple[int, int]
    """How many steps the noisiest block has taken, and the cleanest."""
    steps: int
    """Number of steps that each takes."""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something does not go as it was meant to, while the work goes on."""

    message: str


Emit = Callable[[Event], None]


def renaming(emit: Emit, rename: Callable[[str], str]) -> Emit:
    """Return an `emit` by which stages have other names."""

    def emit_renamed(event: Event) -> None:
        emit(replace(event, stage=rename(event.stage)) if isinstance(event, StageEvent) else event)

    return emit_renamed


class Progress:
    """Tells the stages of some work, and keeps their seconds.

    Work calls `stage` around each stage and `step` as parts of it are done.
    """

    def __init__(self, emit: Emit | None = None, job: int | None = None) -> None:
        """emit: takes each event; without it, warnings are Python's, and nothing else is told."""
        self.emit = emit or _only_warn
        self._job = job
        self.seconds: dict[str, float] = {}
        """Seconds by stage, in the order in which the stages began; a stage run twice adds up."""

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[None]:
        """Time the body as stage `name`, of `total` steps; 0: nobody knows how many."""
        start = time.monotonic()
        self.emit(StageStarted(job=self._job, stage=name, total=total))
        yield
        took = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        _LOG.debug("stage %s took %.3f s", name, took)
        self.emit(StageEnded(job=self._job, stage=name, seconds=took))

    def step(self, name: str, done: int) -> None:
        """Say that `done` steps of stage `name` are done."""
        self.emit(Stepped(job=self._job, stage=name, done=done))

    def queue(self, block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> None:
        """Say how far a long video's queue of blocks is, after a round: `QueueMoved`."""
        self.emit(QueueMoved(job=self._job, block=block, num_blocks=num_blocks, levels=levels, steps=steps))

    def warn(self, message: str) -> None:
        """Say what does not go as it was meant to, while the work goes on."""
        self.emit(Warned(job=self._job, message=message))


def _only_warn(event: Event) -> None:
    if isinstance(event, Warned):
        warnings.warn(event.message, stacklevel=4)
