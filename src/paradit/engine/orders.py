"""Orders, each of which tells ranks to make a video, and a rank's queue of them. Torch-free."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paradit.engine.events import Failed
from paradit.engine.job import Job
from paradit.engine.run_folder import job_of, plain_job
from paradit.stopping import Stop


@dataclass(frozen=True, kw_only=True)
class Order:
    """Order to the ranks to make a video: the job, and how to carry it out.

    All ranks get the same orders in the same sequence.
    """

    number: int
    """Id of the order's job among all jobs of its engine; events about the job have it, too."""
    job: Job
    folder: Path | None
    """Path to the folder of the job's run, where progress is saved; None: no progress is saved."""
    is_denoised: bool = False
    """Whether the denoised latents are saved already, so that only the decode is left to do."""
    replica: int = 0
    """Index of the replica (group of ranks) that makes the video."""
    overwrite: bool = False
    metadata: bool = True
    """Whether the video's metadata says what the video was made from (`provenance`)."""
    checkpoint_steps: int | None = None
    """Denoising steps between checkpoints; None: by time."""

    @property
    def undecoded(self) -> str:
        """Key under which a decode rank publishes, to all ranks, that its decode has failed.

        The ranks that denoise then end the video.
        """
        return f"video {self.number} is not wanted"

    def failed(self, error: Exception) -> Failed:
        """Return the event that the video cannot be made, because of `error`."""
        why = str(error)
        if isinstance(error, OSError):
            why = f"{error.strerror or error}: {error.filename or self.job.output}"
        return Failed(job=self.number, count=self.job.count, message=f"{self.job.request.prompt!r}: {why}")

    def plain(self) -> dict[str, Any]:
        """Return the order as plain values, to be sent over a channel."""
        # Files are named in results as the user has named them.
        named = {"output": self.job.output, "latents": str(self.job.latents) if self.job.latents else None}
        about = {"job": {**plain_job(self.job), **named}, "place": [self.job.index, self.job.count]}
        return {**vars(self), **about, "folder": str(self.folder) if self.folder else None}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Order:
        """Return an order made from the plain values that `plain` returned."""
        fields = dict(plain)
        job = job_of(fields.pop("job"), *fields.pop("place"))
        folder = fields.pop("folder")
        return cls(**fields, job=job, folder=Path(folder) if folder else None)


class Inbox:
    """Queue of the orders (videos to make) that a rank has not begun, with the cancelled ones marked.

    One thread takes orders; any may add and cancel them.
    """

    def __init__(self, stop: Stop | None = None) -> None:
        """Create an empty inbox.

        stop: flag that the user sets to end the run; after that no order is wanted any more.
        """
        self._stop = stop or Stop()
        self._news = threading.Condition()
        self._orders: deque[Order] = deque()
        self._cancelled: set[int] = set()
        self._ended = False
        self.replica: int | None = None
        """Index of the replica (group of ranks) whose orders this rank takes; None: it takes all orders."""

    def add(self, order: Order) -> None:
        """Add an order (a video to make) to the end of the queue."""
        with self._news:
            self._orders.append(order)
            self._news.notify()

    def cancel(self, number: int) -> None:
        """Mark an order (a video to make) as cancelled; work on it ends within a step."""
        self._cancelled.add(number)

    def end(self) -> None:
        """Declare that no more orders (videos to make) will be added."""
        with self._news:
            self._ended = True
            self._news.notify()

    def is_wanted(self, order: Order) -> bool:
        """Return whether an order (a video to make) is still wanted.

        It is wanted unless it was cancelled, or the user has asked to stop the run.
        """
        return order.number not in self._cancelled and not self._stop.wanted

    def take(self, wait: bool) -> Order | None:
        """Take the next order (a video to make) from the queue and return it; None if there is none.

        wait: whether to wait for an order. After waiting, None means that no more orders will come.
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
        """Wait for the next order (a video to make), and return it but leave it in the queue.

        Returns None if no more orders will come.
        """
        order = self.take(wait=True)
        if order is not None:
            self._orders.appendleft(order)
        return order
