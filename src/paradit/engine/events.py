"""All that an engine tells of its jobs. Torch-free.

Readers match on the classes of `AnyEvent`; mypy, and a test, find a reader that does not know one of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, get_args

from paradit.progress import Event, QueueMoved, StageEnded, StageStarted, Stepped, Warned

KEPT = 1000
"""Most events of a job that are kept for readers who come later."""


@dataclass(frozen=True, kw_only=True)
class Began(Event):
    """A request begins."""

    count: int
    """How many requests were asked for together with it, itself included."""
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Doing(Event):
    """A rank begins a stage of a request, or waits for what it needs for it."""

    stage: str


@dataclass(frozen=True, kw_only=True)
class Growing(Event):
    """A long video grows in a file, which plays as far as it is there."""

    path: str


@dataclass(frozen=True, kw_only=True)
class Wrote(Event):
    """So many frames of a video are written."""

    num_frames: int


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """A video is there."""

    result: dict[str, Any]
    """`Job.about`, seconds by stage, and peak memory by rank if ranks have met."""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """A request has failed, and the others go on."""

    count: int
    message: str


@dataclass(frozen=True, kw_only=True)
class Cancelled(Event):
    """A request is not wanted any more, and has ended; what is safe of it is kept."""


@dataclass(frozen=True, kw_only=True)
class MemoryUsed(Event):
    """Peak memory (bytes) and stages of every rank, at the end of a run whose stages are apart."""

    by_rank: list[int]
    stages: list[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """This rank has come to join the others, and waits: for whom, and where."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    """Ranks have failed; the work goes on from its checkpoints with new ones."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Resumable(Event):
    """A run ends before its end, and what is safe of it is in `folder`."""

    folder: str


@dataclass(frozen=True, kw_only=True)
class Extendable(Event):
    """Long videos are there, and what is in `folder` is enough to make them longer."""

    folder: str


@dataclass(frozen=True, kw_only=True)
class Explained(Event):
    """Why something is done as it is."""

    line: str


@dataclass(frozen=True, kw_only=True)
class Placed(Event):
    """How ranks are used, by `auto`, and why."""

    placement: dict[str, Any]
    """`Placement.flat`."""
    reason: str
    seconds: dict[str, float]
    """What all placements that were compared would take."""


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """What a dry run has found."""

    plan: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Missed(Event):
    """Events that are not kept any more, and that this reader has not had."""

    count: int


AnyEvent: TypeAlias = (
    StageStarted | Stepped | StageEnded | QueueMoved | Warned | Began | Doing | Growing | Wrote | Finished
    | Failed | Cancelled | MemoryUsed | Waiting | Restarted | Resumable | Extendable | Explained | Placed
    | Planned | Missed
)  # fmt: skip
EVENTS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(AnyEvent)}
"""Every class of events by its name."""

COALESCED = (Stepped, QueueMoved, Wrote)
"""Events of which a later one says all that the ones before it have said."""


class Log:
    """Events of one job, numbered from 1: the last `KEPT`, of progress the newest only."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._events: deque[Event] = deque()
        self.last = 0
        """Number of the newest one."""
        self._dropped = 0
        """Number of the newest one that was dropped, not for a later one of its kind."""

    def add(self, event: Event) -> Event:
        """Keep an event; returns it with its number."""
        self.last += 1
        event = replace(event, number=self.last)
        if isinstance(event, COALESCED):
            # Few stages run at once: what a newer one replaces is near the end.
            for place in range(len(self._events) - 1, max(-1, len(self._events) - 8), -1):
                if _replaces(event, self._events[place]):
                    del self._events[place]
                    break
        self._events.append(event)
        if len(self._events) > self._kept:
            self._dropped = self._events.popleft().number
        return event

    def since(self, number: int) -> list[Event]:
        """Events after number `number`; first `Missed`, if some of them are not kept any more."""
        found = [event for event in self._events if event.number > number]
        if number < self._dropped:
            count = self._dropped - number
            found.insert(0, Missed(job=found[0].job if found else None, number=self._dropped, count=count))
        return found


def _replaces(new: Event, old: Event) -> bool:
    same = type(new) is type(old) and new.job == old.job
    return same and getattr(new, "stage", None) == getattr(old, "stage", None)
