"""Events by which an engine reports on its jobs. Torch-free.

Code that handles events matches on the classes of `AnyEvent`; mypy, and a test, find code that misses one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, get_args

from paradit.progress import Event, QueueMoved, StageEnded, StageStarted, Stepped, Warned

KEPT = 1000
"""Number of events of a job that are kept, at most, for readers that ask for them later."""


@dataclass(frozen=True, kw_only=True)
class Began(Event):
    """Event sent when work on a request begins."""

    count: int
    """Number of requests that were submitted together with this one, including it."""
    prompt: str
    """Prompt of the request."""


@dataclass(frozen=True, kw_only=True)
class Doing(Event):
    """Event sent when a rank begins a stage of a request, or starts to wait for the stage's input."""

    stage: str
    """Name of the stage."""


@dataclass(frozen=True, kw_only=True)
class Growing(Event):
    """Event sent before a long video is written; the file at `path` can be played while it grows."""

    path: str
    """Path of the growing file or folder."""


@dataclass(frozen=True, kw_only=True)
class Wrote(Event):
    """Event sent when more frames of a video are written; `num_frames` counts all so far."""

    num_frames: int
    """Number of frames written so far."""


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """Event sent when a video's file is complete."""

    result: dict[str, Any]
    """Description of the video: `Job.about`, seconds by stage, and peak memory in bytes by rank if it was
    gathered."""


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """Event sent when a request has failed; other requests are not affected."""

    count: int
    """Number of requests that were submitted together with this one, including it."""
    message: str
    """Reason of the failure, in one line."""


@dataclass(frozen=True, kw_only=True)
class Cancelled(Event):
    """Event sent when a request that is no longer wanted has been ended; its checkpoints are kept."""


@dataclass(frozen=True, kw_only=True)
class MemoryUsed(Event):
    """Event with the peak memory in bytes and the stages of every rank, sent at the end of a run.

    Not sent if all ranks denoise and all work on the same videos: each `Finished` event then has the memory.
    """

    by_rank: list[int]
    """Peak memory of each rank, in bytes."""
    stages: list[tuple[str, ...]]
    """Names of the stages of each rank."""


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """Event sent while this rank waits for others to join it; the text says for which ranks, and where."""

    message: str
    """Text that names the ranks and the address."""


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    """Event sent when failed ranks are replaced by new ones, which resume from checkpoints."""

    message: str
    """Text that names the failed ranks and the reason."""


@dataclass(frozen=True, kw_only=True)
class Resumable(Event):
    """Event sent when a run ends unfinished; it can be resumed from the progress saved in `folder`."""

    folder: str
    """Path of the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Extendable(Event):
    """Event sent when long videos are complete; they can be made longer from the state saved in `folder`."""

    folder: str
    """Path of the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Explained(Event):
    """Event with a line that explains a choice made for the user, such as the seed or the placement."""

    line: str
    """Text of the explanation."""


@dataclass(frozen=True, kw_only=True)
class Placed(Event):
    """Event sent when `--placement auto` has chosen a placement of the work on ranks."""

    placement: dict[str, Any]
    """Chosen placement, as plain values (`Placement.flat`)."""
    reason: str
    """Text that says why this placement was chosen."""
    seconds: dict[str, float]
    """Estimated seconds for all requests, with each placement that was compared, by the placement's name."""


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """Event with what a dry run has found out about a video (sizes, FLOPs, memory), as plain values."""

    plan: dict[str, Any]
    """Request as it would run, with its sizes, operations and memory."""


@dataclass(frozen=True, kw_only=True)
class Missed(Event):
    """Event that a reader gets in place of `count` older events that are no longer kept."""

    count: int
    """Number of events that are no longer kept."""


AnyEvent: TypeAlias = (
    StageStarted | Stepped | StageEnded | QueueMoved | Warned | Began | Doing | Growing | Wrote | Finished
    | Failed | Cancelled | MemoryUsed | Waiting | Restarted | Resumable | Extendable | Explained | Placed
    | Planned | Missed
)  # fmt: skip
EVENTS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(AnyEvent)}
"""All event classes by name; ranks send the name with each event."""

COALESCED = (Stepped, QueueMoved, Wrote)
"""Event classes of which a log keeps only the newest event, because it covers the earlier ones."""


class Log:
    """Log of one job's events, with serial numbers from 1; readers can get earlier events from it, too.

    It keeps at most `KEPT` events, and only the newest of each kind of progress.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._events: deque[Event] = deque()
        self.last = 0
        """Serial number of the newest event; 0 if there is none yet."""
        self._dropped = 0
        """Serial number of the newest event that was dropped because the log was full.

        Events that were replaced by newer ones do not count.
        """

    def add(self, event: Event) -> Event:
        """Add an event to the log, and return the event with its serial number."""
        self.last += 1
        event = replace(event, number=self.last)
        if isinstance(event, COALESCED):
            # Few stages run at once, so the event to replace is near the end.
            for place in range(len(self._events) - 1, max(-1, len(self._events) - 8), -1):
                if _replaces(event, self._events[place]):
                    del self._events[place]
                    break
        self._events.append(event)
        if len(self._events) > self._kept:
            self._dropped = self._events.popleft().number
        return event

    def since(self, number: int) -> list[Event]:
        """Return the events with serial numbers above `number`.

        A `Missed` event comes first if some of them are no longer kept.
        """
        found = [event for event in self._events if event.number > number]
        if number < self._dropped:
            count = self._dropped - number
            found.insert(0, Missed(job=found[0].job if found else None, number=self._dropped, count=count))
        return found


def _replaces(new: Event, old: Event) -> bool:
    same = type(new) is type(old) and new.job == old.job
    return same and getattr(new, "stage", None) == getattr(old, "stage", None)
