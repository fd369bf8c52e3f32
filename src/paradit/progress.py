"""Progress of long work, reported as events through one function, `emit`. Torch-free."""

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
    """Something that has happened to a run or a request; `engine.events.AnyEvent` lists all kinds."""

    job: int | None = None
    """Index of the request that the event is about; None if the event is about no request, or about all."""
    number: int = 0
    """Serial number of the event among those of its job, from 1; 0 until it is recorded in a `Log`."""


@dataclass(frozen=True, kw_only=True)
class StageEvent(Event):
    """Base class of events about one stage, such as encode, denoise or decode."""

    stage: str
    """Name of the stage; with several ranks it may say where the stage runs, as in `decode on rank 3`."""


@dataclass(frozen=True, kw_only=True)
class StageStarted(StageEvent):
    """Event sent when a stage begins."""

    total: int
    """Number of steps of the stage; 0 if unknown."""


@dataclass(frozen=True, kw_only=True)
class Stepped(StageEvent):
    """Event sent when `done` steps of a stage are done."""

    done: int
    """Number of steps done so far."""
    resumed: int = 0
    """Number of these steps that were done before the run was resumed, by an earlier process."""


@dataclass(frozen=True, kw_only=True)
class StageEnded(StageEvent):
    """Event sent when a stage has ended."""

    seconds: float
    """Seconds that the stage took."""


@dataclass(frozen=True, kw_only=True)
class QueueMoved(Event):
    """Event sent after each round, which is one pass over the frame blocks in the queue of a long video."""

    block: int
    """Serial number, from 1, of the frame block in the queue that is denoised the most."""
    num_blocks: int | None
    """Number of frame blocks of the video; None if the video is endless."""
    levels: tuple[int, int]
    """Denoising steps done, as a pair: by the noisiest frame block in the queue, by the most denoised one."""
    steps: int
    """Number of denoising steps that each frame block takes in all."""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Event sent when something does not go as intended, while the work continues."""

    message: str
    """Text of the warning, in one line."""


Emit = Callable[[Event], None]


def renaming(emit: Emit, rename: Callable[[str], str]) -> Emit:
    """Return a function that passes events on to `emit`, with the stage names changed by `rename`."""

    def emit_renamed(event: Event) -> None:
        emit(replace(event, stage=rename(event.stage)) if isinstance(event, StageEvent) else event)

    return emit_renamed


class Progress:
    """Reporter of progress through stages, which also adds up the seconds of each stage.

    Code that does the work calls `stage` around each stage, and `step` as steps of it are done.
    """

    def __init__(self, emit: Emit | None = None, job: int | None = None) -> None:
        """Create a reporter that sends events to `emit`.

        Without `emit`, warnings are issued by Python's `warnings`, and nothing else is reported. job: index
        of the request that the work is for; None: no request.
        """
        self.emit = emit or _only_warn
        self._job = job
        self.seconds: dict[str, float] = {}
        """Seconds taken by each stage that has ended, by its name; a stage that runs twice adds up."""
        self._resumed: dict[str, int] = {}
        """Number of steps of each stage that an earlier process did, by the stage's name."""

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[None]:
        """Time the stage `name`, which runs in the `with` block, and report its start and end.

        total: number of steps; 0 if unknown.
        """
        start = time.monotonic()
        self._resumed[name] = 0
        self.emit(StageStarted(job=self._job, stage=name, total=total))
        # Without `finally`: no end is reported of a stage that raises, and its time does not count.
        yield
        took = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        _LOG.debug("stage %s took %.3f s", name, took)
        self.emit(StageEnded(job=self._job, stage=name, seconds=took))

    def step(self, name: str, done: int) -> None:
        """Report that `done` steps of stage `name` are done."""
        resumed = self._resumed.get(name, 0)
        self.emit(Stepped(job=self._job, stage=name, done=done, resumed=resumed))

    def resume(self, name: str, done: int) -> None:
        """Report that an earlier process did `done` steps of stage `name`; nothing is reported of 0 steps."""
        if done:
            self._resumed[name] = done
            self.step(name, done)

    def queue(self, block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> None:
        """Emit `QueueMoved`: the state of a long video's queue of frame blocks after a pass over it."""
        self.emit(QueueMoved(job=self._job, block=block, num_blocks=num_blocks, levels=levels, steps=steps))

    def warn(self, message: str) -> None:
        """Report that something does not go as intended, while the work continues."""
        self.emit(Warned(job=self._job, message=message))


def _only_warn(event: Event) -> None:
    if isinstance(event, Warned):
        warnings.warn(event.message, stacklevel=4)
