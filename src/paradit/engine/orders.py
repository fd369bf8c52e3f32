"""Orders, which tell ranks what to make, and the inbox of a rank's next ones. Torch-free."""

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
    """A video to make, and how. All ranks of a world get the same orders, in the same order."""

    number: int
    """Number of the job among all jobs of its engine; its events have it too."""
    job: Job
    folder: Path | None
    """Path to the folder of the job's run; None: no progress is saved."""
    is_denoised: bool = False
    """Whether the latents are there already, and only the decode is left to do."""
    replica: int = 0
    """Number of the replica that makes the video, from 0."""
    overwrite: bool = False
    metadata: bool = True
    """Whether the video's metadata says what it was made from (`provenance`)."""
    checkpoint_steps: int | None = None
    """Denoising steps between checkpoints; None: by time."""

    def plain(self) -> dict[str, Any]:
        """Return the order as plain values, which can be sent over a channel."""
        # Files are named in results as the user has named them.
        named = {"output": self.job.output, "latents": str(self.job.latents) if self.job.latents else None}
        about = {"job": {**plain_job(self.job), **named}, "place": [self.job.index, self.job.count]}
        return {**vars(self), **about, "folder": str(self.folder) if self.folder else None}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Order:
        """Return the order that `plain` has turned into plain values."""
        fields = dict(plain)
        job = job_of(fields.pop("job"), *fields.pop("place"))
        folder = fields.pop("folder")
        return cls(**fields, job=job, folder=Path(folder) if folder else None)


class Inbox:
    """Queue of the orders that a rank has not begun, and the numbers of those that were cancelled.

    One thread takes orders; any may add and cancel them.
    """

    def __init__(self, stop: Stop | None = None) -> None:
        """Create an empty inbox. stop: the user's wish to stop, after which no order is wanted any more."""
        self._stop = stop or Stop()
        self._news = threading.Condition()
        self._orders: deque[Order] = deque()
        self._cancelled: set[int] = set()
        self._ended = False
        self.replica: int | None = None
        """Number of the replica whose orders are taken; None: all orders are."""

    def add(self, order: Order) -> None:
        """Add an order, to be carried out after those before it."""
        with self._news:
            self._orders.append(order)
            self._news.notify()

    def cancel(self, number: int) -> None:
        """Cancel an order: it is not made, or not to its end."""
        self._cancelled.add(number)

    def end(self) -> None:
        """Declare that no more orders come."""
        with self._news:
            self._ended = True
            self._news.notify()

    def is_wanted(self, order: Order) -> bool:
        """Return whether an order is still to be made: it is not cancelled, and the run not stopped."""
        return order.number not in self._cancelled and not self._stop.wanted

    def take(self, wait: bool) -> Order | None:
        """Take the next order and return it; None if there is none (`scheduling.stages.Take`).

        wait: whether to wait for one; then None means that no more come.
        """
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
        """Wait for the next order, and return it without taking it; None if no more come."""
        order = self.take(wait=True)
        if order is not None:
            self._orders.appendleft(order)
        return order
