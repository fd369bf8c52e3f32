"""Jobs of an engine, as a Python program sees them: status, events, result and frames."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from paradit.config.errors import JobCancelled, JobError
from paradit.config.limits import amount
from paradit.engine.events import Cancelled, Failed, Finished, Log
from paradit.engine.job import Job
from paradit.progress import Event, StageStarted
from paradit.video.frame import Frame
from paradit.video.reader import read_video

DOING = {"encode": "encoding", "conditions": "encoding", "denoise": "denoising", "decode": "decoding"}
"""Mapping from the name of a stage to the status of a job during it."""
ENDED = ("done", "failed", "cancelled")


class EngineJob:
    """Job of an engine: a request that it has accepted, with its status, its events and its result."""

    def __init__(self, number: int, job: Job, cancel: Callable[[int], None], held: ExitStack) -> None:
        self.number, self.request, self.output = number, job.request, Path(job.output)
        self._cancel, self._held = cancel, held
        self._news = threading.Condition()
        self._log = Log()
        self._wakers: set[Callable[[], object]] = set()
        self._status, self._result, self._error = "queued", dict[str, Any](), ""

    @property
    def status(self) -> str:
        """Status of the job: `queued`, `encoding`, `denoising`, `decoding`, `done`, `failed`, `cancelled`."""
        return self._status

    def cancel(self) -> None:
        """Cancel this job and no other; it ends within a step, and its checkpoints are kept."""
        self._cancel(self.number)

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the video, and return a description of it: its path, seconds by stage, and so on.

        Raises JobError with the reason if the job has failed, JobCancelled if it was cancelled, and
        TimeoutError after `timeout` seconds.
        """
        if timeout:  # 0 asks whether the job has ended already
            timeout = amount("timeout", timeout, most=threading.TIMEOUT_MAX)
        with self._news:
            if not self._news.wait_for(lambda: self._status in ENDED, timeout):
                raise TimeoutError(f"job {self.number} is {self._status} after {timeout:g} s")
        if self._status == "done":
            return self._result
        raise JobCancelled("cancelled") if self._status == "cancelled" else JobError(self._error)

    def frames(self) -> Iterator[Frame]:
        """Wait for the video, and yield its frames [H, W, 3], uint8, read from its file."""
        self.result()
        yield from read_video(self.output)[0]

    def events(self, after: int = 0) -> JobEvents:
        """Return the job's events, for a `for` or `async for` loop until the job ends.

        after: serial number; only events with larger numbers are returned. In place of events that are no
        longer kept, one event `Missed` is returned.
        """
        return JobEvents(self, after)

    def hear(self, event: Event) -> None:
        """Record an event about this job, or about all jobs, and wake the threads that wait for an event."""
        with self._news:
            if self._status in ENDED:
                return
            self._log.add(event)
            self._status = self._status_after(event)
            self._news.notify_all()
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def end(self) -> None:
        """Release the job's file names; remove its run's folder unless the run can be resumed or extended."""
        self._held.close()

    def since(self, number: int) -> tuple[list[Event], bool]:
        """Return the events with serial numbers above `number`, and whether more will follow."""
        with self._news:
            return self._log.since(number), self._status not in ENDED

    def wait(self, number: int) -> None:
        """Wait until there is an event with a serial number above `number`, or the job has ended."""
        with self._news:
            self._news.wait_for(lambda: self._log.last > number or self._status in ENDED)

    def waking(self, wake: Callable[[], object]) -> Callable[[], None]:
        """Call `wake` at every event of this job from now on, in the engine's thread.

        Returns a function that stops these calls.
        """
        with self._news:
            self._wakers.add(wake)
        return lambda: self._wakers.discard(wake)

    def _status_after(self, event: Event) -> str:
        match event:
            case StageStarted(job=int()):
                return DOING.get(event.stage.split()[0], self._status)
            case Finished():
                self._result = event.result
                return "done"
            case Failed():
                self._error = event.message
                return "failed"
            case Cancelled():
                return "cancelled"
        return self._status


class JobEvents:
    """Events of a job, for iteration by `for` or `async for`; neither starts a thread."""

    def __init__(self, job: EngineJob, after: int) -> None:
        self._job, self._after = job, after

    def __iter__(self) -> Iterator[Event]:
        number, more = self._after, True
        while more:
            self._job.wait(number)
            found, more = self._job.since(number)
            for event in found:
                number = event.number
                yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody listens any more
                loop.call_soon_threadsafe(news.set)

        forget = self._job.waking(wake)
        try:
            number, more = self._after, True
            while more:
                news.clear()  # before looking, so that an event that comes meanwhile ends the wait below
                found, more = self._job.since(number)
                for event in found:
                    number = event.number
                    yield event
                if more and not found:
                    await news.wait()
        finally:
            forget()
