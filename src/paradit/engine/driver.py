"""Has ranks make a run's videos: starts them, passes on what they tell, starts them anew when one fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from paradit.config.errors import RankError
from paradit.engine.channel import Message, event_of
from paradit.engine.events import Doing, Failed, Finished, Restarted
from paradit.engine.job import Job, Run
from paradit.engine.run_folder import RunFolder
from paradit.engine.started import LAST_WORDS, LISTEN_SECONDS, Ranks
from paradit.progress import Event, Progress, StageEnded, StageStarted
from paradit.stopping import Interrupted, Stop

FAILURES = 3
"""After so many failures in its work a request is given up; and the run, after so many before any work."""
SILENCE_SECONDS = 60.0
"""A rank without a heartbeat for so long hangs, or for the hang limit if that is shorter."""
LAST_WORDS_SECONDS = 1.0
"""How long after the first failure other ranks are heard: one may know the cause of the other's."""
LOG_LINES = 12


@dataclass(frozen=True)
class Failure:
    """Why a world came to its end too soon."""

    text: str
    """By rank: what it was doing, and its last words."""
    request: int | None
    """The index of the one that was worked on; None: none was yet."""
    raised_at_start: bool
    """Whether a rank raised an exception before any request, as it would again."""


def drive(
    run: Run,
    folder: RunFolder,
    *,
    report: Progress,
    stop: Stop,
    start: Callable[[Run, list[Job]], Ranks],
) -> None:
    """Make what is left of a run. Raises RankError where ranks cannot even start, Interrupted after a stop.

    start: starts the ranks of a world for these jobs of a run.
    Whatever happens, also an exception in this process such as Ctrl-C, no process is left behind.
    """
    failures: Counter[int | None] = Counter()
    given_up: set[int] = set()
    while left := [job for job in run.jobs if job.index not in given_up and not folder.is_done(job)]:
        world = _World(run, left, report, stop, start(run, left))
        try:
            failure = world.follow()
        finally:
            world.ranks.end()
            folder.sweep(run.jobs)
        given_up |= world.failed
        run = replace(run, overwrite=True)  # what is there now, this run has made
        if failure is None:
            break
        if failure.request is not None:
            failures[None] = 0  # it does start
        failures[failure.request] += 1
        count = failures[failure.request]
        if failure.request is None and (failure.raised_at_start or count == FAILURES):
            raise RankError(failure.text)
        if failure.request is not None and count == FAILURES:
            given_up.add(failure.request)
            job = run.jobs[failure.request]
            message = (
                f"{job.request.prompt!r}: given up after {FAILURES} failures, the last one:\n{failure.text}"
            )
            report.emit(Failed(job=job.index, count=job.count, message=message))
        else:
            what = "the start" if failure.request is None else f"request {failure.request + 1}"
            again = f"starting anew, from what is saved (failure {count} of {FAILURES} in {what})"
            report.emit(Restarted(message=f"{failure.text}\n{again}"))


class _World:
    """The ranks of one try, as the driver knows them."""

    def __init__(self, run: Run, jobs: list[Job], report: Progress, stop: Stop, started: Ranks) -> None:
        self._run, self._jobs, self._report, self._stop = run, jobs, report, stop
        self.ranks = started
        self.failed: set[int] = set()
        """Requests that have failed by themselves."""
        ranks = range(run.placement.ranks)
        self._running = set(ranks)
        self._doing: list[tuple[str, int | None]] = [("load", None) for _ in ranks]
        self._progress = time.monotonic()
        self._heard: dict[int, float] = {}
        """When last. A rank that has never been heard is not silent: it may load its libraries for long."""
        self._last_words: dict[int, tuple[str, str]] = {}
        """Of ranks that failed: how, and what they had to say."""
        self._denoising: set[int] = set()
        """Ranks that look, after every step, whether they are to stop."""
        self._stopped = self._ended = False

    def follow(self) -> Failure | None:
        """Pass on events until every rank is done, or one has failed. Raises Interrupted after a stop."""
        told = False
        while self._running:
            failed = [self._take(rank, message) for rank, message in self._listen()]
            if any(failed):
                return self._failure()
            if self._stop.wanted and not told:
                told = True
                for rank in self._running:
                    self.ranks.tell(rank, "stop")
            endless = self._jobs[0].request.endless
            if endless and self._ended:
                return None  # on its other ranks nobody knows of an end
            # A video without end is decoded as far as it is, and told of.
            if self._stop.wanted and not self._denoising and (not endless or self._stopped):
                raise Interrupted
            if self._find_hanging():
                return self._failure()
        return None

    def _listen(self) -> list[tuple[int, Message]]:
        before = time.monotonic()
        heard = self.ranks.hear(LISTEN_SECONDS)
        slept = time.monotonic() - before - LISTEN_SECONDS
        if slept > 1.0:  # this process was stopped itself, and perhaps the ranks with it
            self._heard = {rank: then + slept for rank, then in self._heard.items()}
            self._progress += slept
        return heard

    def _take(self, rank: int, message: Message) -> bool:
        """Take one message; whether it says that the rank has failed."""
        event, values = message
        starts = rank not in self._heard
        self._heard[rank] = time.monotonic()
        if event != "alive" or starts:
            self._progress = self._heard[rank]
        if event in LAST_WORDS:
            self._running.discard(rank)
            self._denoising.discard(rank)
            self._stopped |= event == "stopped"
            if values:
                self._last_words[rank] = event, str(values[0]).rstrip()
        elif event == "event":
            self._pass_on(rank, event_of(*values))
        return event in ("raised", "ended")

    def _pass_on(self, rank: int, event: Event) -> None:
        match event:
            case Doing():
                self._doing[rank] = event.stage, event.job
            case StageStarted() if event.stage.startswith("denoise"):
                self._denoising.add(rank)
            case StageEnded():
                self._report.seconds[event.stage] = self._report.seconds.get(event.stage, 0.0) + event.seconds
                if event.stage.startswith("denoise"):
                    self._denoising.discard(rank)
            case Failed():
                assert event.job is not None
                self.failed.add(event.job)
        self._stop.heeded = bool(self._denoising)
        self._ended |= isinstance(event, Finished | Failed)
        self._report.emit(event)

    def _find_hanging(self) -> bool:
        """Whether ranks give no sign of life, or none gets any further; then that is their last word."""
        now, limit = time.monotonic(), self._run.hang_limit
        silence = min(limit, SILENCE_SECONDS)
        silent = {rank for rank in self._running if now - self._heard.get(rank, now) > silence}
        words = f"no sign of life for {silence:g} s"
        if not silent and now - self._progress > limit:
            silent, words = self._running, f"no progress for {limit:g} s"
        self._last_words.update(dict.fromkeys(silent, ("hangs", words)))
        if silent:
            for rank in self._running:
                self.ranks.tell(rank, "stacks")
        return bool(silent)

    def _failure(self) -> Failure:
        """Hear the others' last words, and make a failure of it all."""
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while self._running and time.monotonic() < deadline:
            for rank, message in self.ranks.hear(LISTEN_SECONDS):
                self._take(rank, message)
        # Ranks raise where another has gone; that is the one to know of.
        causes = {rank: text for rank, (event, text) in self._last_words.items() if event != "raised"}
        requests = [self._doing[rank][1] for rank in sorted(causes or self._last_words)]
        lines = []
        for rank, (_, text) in sorted(self._last_words.items()):
            if causes and rank not in causes:
                text = text.splitlines()[-1]  # noqa: PLW2901
            lines.append(f"rank {rank} ({self._about(rank)}): {text}")
            if rank in causes:
                lines += [f"  | {line}" for line in self.ranks.log(rank)[-LOG_LINES:]]
        return Failure("\n".join(lines), requests[0], not causes and requests[0] is None)

    def _about(self, rank: int) -> str:
        stage, request = self._doing[rank]
        return stage if request is None else f"{stage} of request {request + 1}"
