"""Jobs as ranks are told of them, and where a rank keeps those that it has not begun. Torch-free."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paradit.engine.job import Job
from paradit.engine.run_folder import job_of, plain_job
from paradit.stopping import Stop


@dataclass(frozen=True, kw_only=True)
class Order:
    """A job, and how it is to be made. All ranks of a world are told of the same ones, in the same order."""

    number: int
    """Among all jobs of its engine; events have it."""
    job: Job
    folder: Path | None
    """Of its run; None: nothing is kept."""
    is_denoised: bool = False
    """Whether nothing but its decode is left to do."""
    replica: int = 0
    """Which replica makes it."""
    overwrite: bool = False
    metadata: bool = True
    """Whether the video says what it was made from (`provenance`)."""
    checkpoint_steps: int | None = None
    """Denoising steps between checkpoints; None: by time."""
    tells_frames: bool = False
    """Whether its frames are told of, too."""

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, for a channel."""
        # Files are named in results as the user has named them.
        named = {"output": self.job.output, "latents": str(self.job.latents) if self.job.latents else None}
        about = {"job": {**plain_job(self.job), **named}, "place": [self.job.index, self.job.count]}
        return {**vars(self), **about, "folder": str(self.folder) if self.folder else None}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Order:
        """Return what `plain` was called on."""
        fields = dict(plain)
        job = job_of(fields.pop("job"), *fields.pop("place"))
        folder = fields.pop("folder")
        return cls(**fields, job=job, folder=Path(folder) if folder else None)


class Inbox:
    """Orders that a rank has not begun, and which are not wanted any more. One thread takes; any may add."""

    def __init__(self, stop: Stop | None = None) -> None:
        """stop: the user's wish that no order be wanted any more."""
        self._stop = stop or Stop()
        self._news = threading.Condition()
        self._orders: deque[Order] = deque()
        self._cancelled: set[int] = set()
        self._ended = False
        self.replica: int | None = None
        """Whose orders are taken; None: all."""

    def add(self, order: Order) -> None:
        """Have an order made after those before it."""
        with self._news:
            self._orders.append(order)
            self._news.notify()

    def cancel(self, number: int) -> None:
        """Have an order not made, or not to its end."""
        self._cancelled.add(number)

    def end(self) -> None:
        """No more orders come."""
        with self._news:
            self._ended = True
            self._news.notify()

    def is_wanted(self, order: Order) -> bool:
        """Whether an order is still to be made."""
        return order.number not in self._cancelled and not self._stop.wanted

    def take(self, wait: bool) -> Order | None:
        """Return the next order (`scheduling.stages.Take`)."""
        with self._news:
            while not self._stop.wanted:
                while self._orders:
                    order = self._orders.popleft()
                    if self.replica in (None, order.replica):
                        return order
                if self._ended or not wait:
                    return None
                self._news.wait()
        return None

    def first(self) -> Order | None:
        """Wait for an order and return it, without taking it; None if none comes."""
        order = self.take(wait=True)
        if order is not None:
            self._orders.appendleft(order)
        return order
