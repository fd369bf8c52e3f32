"""Reporters that show a run on the command line: as a terminal's bars, as plain lines or as JSON lines."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, assert_never, cast

from rich.console import Console
from rich.progress import Progress as Bars

from paradit.cli.bars import progress_bars
from paradit.cli.text import duration, memory_text, plan_text, queue_text, result_text
from paradit.engine.events import (
    AnyEvent,
    Began,
    Cancelled,
    Doing,
    Explained,
    Extendable,
    Failed,
    Finished,
    Growing,
    MemoryUsed,
    Missed,
    Placed,
    Planned,
    Restarted,
    Resumable,
    Waiting,
    Wrote,
)
from paradit.progress import (
    Event,
    Progress,
    QueueMoved,
    StageEnded,
    StageEvent,
    StageStarted,
    Stepped,
    Warned,
)
from paradit.streams import says_utf8

Fields = tuple[str, dict[str, Any]] | None

PLAIN_SECONDS = 5.0
"""Least number of seconds between two printed lines about a stage's progress, if there is no terminal."""


class Reporter(Progress):
    """Reporter that prints plain lines: progress and warnings on stderr, results on stdout.

    To be used as a context manager.
    """

    def __init__(self) -> None:
        super().__init__(self._hear)
        self.failures = 0
        """Number of requests that have failed."""
        self._count: dict[int | None, int] = {}
        """Mapping from a request's index to the number of requests submitted with it, itself included."""
        self._rows: dict[tuple[int | None, str], _Row] = {}
        """Mapping from (request index, stage name) to the stage's progress; several may run at once."""
        self._frames: dict[int | None, int] = {}
        """Mapping from a request's index to the number of frames written so far to its long video."""
        self._queue: dict[int | None, str] = {}
        """Mapping from a request's index to a text on the progress of its queue of frame blocks."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def _hear(self, event: Event) -> None:
        """Record what every kind of reporter needs of an event, then show the event."""
        match event:
            case Began():
                self._count[event.job] = event.count
            case Failed():
                self.failures += 1
            case Wrote():
                self._frames[event.job] = event.num_frames
            case StageStarted():
                self._rows[event.job, event.stage] = _Row(self._name(event), event.total)
        self.show(cast(AnyEvent, event))

    def show(self, event: AnyEvent) -> None:
        """Print an event of a run for the user, if it is of a kind that is shown."""
        match event:
            case StageStarted():
                self._say(
                    f"{self._name(event)}: {event.total} steps" if event.total > 1 else self._name(event)
                )
            case Stepped():
                self._show_step(event)
            case StageEnded():
                self._say(f"{self._name(event)}: done in {duration(event.seconds)}")
                if event.stage.startswith("decode") and (queue := self._queue.pop(event.job, "")):
                    self._say(f"{queue}, {self._frames.get(event.job, 0)} frames written")
            case QueueMoved():
                levels = event.levels
                self._queue[event.job] = queue_text(event.block, event.num_blocks, levels, event.steps)
            case Finished():
                print(result_text(event.result), flush=True)
            case MemoryUsed():
                print(memory_text(event.by_rank, event.stages), flush=True)
            case Planned():
                print(plan_text(event.plan), flush=True)
            case Wrote() | Doing():
                pass
            case _:
                if line := self._line(event):
                    self._say(line)

    def _line(  # noqa: PLR0911 (one for each class)
        self,
        event: Warned | Began | Growing | Failed | Cancelled | Waiting | Restarted | Resumable | Extendable
        | Explained | Placed | Missed,
    ) -> str:  # fmt: skip
        """Return the line to print for an event; empty if there is nothing to print."""
        match event:
            case Began():
                return f"{self._number(event)}{event.prompt}" if event.count > 1 else ""
            case Warned():
                return f"paradit: warning: {event.message}"
            case Explained():
                return f"paradit: {event.line}"
            case Placed():
                return f"paradit: placement: {event.reason}"
            case Failed():
                return f"paradit: failed: {_number(event.job, event.count)}{event.message}"
            case Cancelled():
                return f"paradit: {self._number(event)}cancelled"
            case Waiting() | Restarted():
                return f"paradit: {event.message}"
            case Resumable():
                return f"paradit: to resume: paradit resume {_path(event.folder)}"
            case Extendable():
                return f"paradit: to make it longer: paradit extend {_path(event.folder)} --duration 30s"
            case Growing():
                path = shlex.quote(event.path)
                return f"paradit: the video grows in {path}: you can play what is there"
            case Missed():
                return f"paradit: {event.count} earlier events were dropped"
            case _:
                assert_never(event)

    def _show_step(self, event: Stepped) -> None:
        row = self._rows.get((event.job, event.stage))
        now = time.monotonic()
        own = event.done - event.resumed
        if row is None or now - row.said < PLAIN_SECONDS or not own:
            return
        row.said = now
        rate = own / (now - row.began)
        if row.total:
            left = duration((row.total - event.done) / rate)
            self._say(f"{row.name}: {event.done}/{row.total}, {rate:.3g} steps/s, {left} left")
        else:
            self._say(f"{row.name}: {event.done}, {rate:.3g} steps/s")
        queue = self._queue.get(event.job)
        if queue and event.stage.startswith("denoise"):
            self._say(f"{queue}, {self._frames.get(event.job, 0)} frames written")

    def _name(self, event: StageEvent) -> str:
        """Return the name of an event's stage, with the request's number before it if there are several."""
        return f"{self._number(event)}{event.stage}"

    def _number(self, event: Event) -> str:
        return _number(event.job, self._count.get(event.job, 1))

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Row:
    """Progress of a stage that is under way: when it began, and when a line about it was last printed."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.began = self.said = time.monotonic()


def _number(job: int | None, count: int) -> str:
    return f"[{job + 1}/{count}] " if job is not None and count > 1 else ""


def _path(folder: str) -> str:
    return shlex.quote(os.path.relpath(Path(folder)))


class SilentReporter(Reporter):
    """Reporter for all ranks of a launcher except the first, which reports the run for all.

    It prints one thing only: for which other ranks this rank waits.
    """

    def show(self, event: AnyEvent) -> None:
        if isinstance(event, Waiting):  # there may be no other rank to report it
            super().show(event)


class JsonReporter(Reporter):
    """Reporter that prints JSON lines on stdout: one object per event, with the event's name in `event`."""

    def show(self, event: AnyEvent) -> None:
        if (found := self._fields(event)) is not None:
            name, fields = found
            print(json.dumps({"event": name, **fields}, ensure_ascii=not says_utf8()), flush=True)

    def _fields(self, event: AnyEvent) -> Fields:  # noqa: PLR0911, PLR0912 (one for each class)
        """Return an event's name and fields for JSON; None if the event is not reported."""
        match event:
            case StageStarted():
                return "stage_start", {"stage": event.stage, "total": event.total or None}
            case Stepped():
                row = self._rows.get((event.job, event.stage))
                total = row.total if row is not None else 0
                about = {"stage": event.stage, "done": event.done, "total": total or None}
                return "step", {**about, "resumed": event.resumed}
            case StageEnded():
                return "stage_end", {"stage": event.stage, "seconds": round(event.seconds, 4)}
            case QueueMoved():
                about = {"block": event.block, "num_blocks": event.num_blocks, "levels": event.levels}
                written = self._frames.get(event.job, 0)
                return "block", {**about, "num_inference_steps": event.steps, "frames_written": written}
            case Began():
                return "request", {"index": event.job, "count": event.count, "prompt": event.prompt}
            case Failed():
                return "failed", {"index": event.job, "count": event.count, "message": event.message}
            case Finished():
                return "result", event.result
            case Cancelled():
                return "cancelled", {"index": event.job}
            case Planned():
                return "plan", event.plan
            case MemoryUsed():
                return "memory", {
                    "peak_memory_bytes_by_rank": event.by_rank, "stages_by_rank": event.stages,
                }  # fmt: skip
            case Placed():
                return "placement", {**event.placement, "reason": event.reason, "seconds": event.seconds}
            case Warned():
                return "warning", {"message": event.message}
            case Explained():
                return "explain", {"line": event.line}
            case Restarted():
                return "restarted", {"message": event.message}
            case Resumable():
                return "resumable", {"run_dir": event.folder}
            case Extendable():
                return "extendable", {"run_dir": event.folder}
            case Growing():
                return "growing", {"path": event.path}
            case Missed():
                return "missed", {"count": event.count}
            case Waiting():
                self._say(f"paradit: {event.message}")
            case Wrote() | Doing():
                pass
            case _:
                assert_never(event)
        return None


class TerminalReporter(Reporter):
    """Reporter that draws bars on a terminal's stderr: one line per stage, with steps, rate and time left.

    A finished stage becomes a plain line above the bars, so that nothing draws it again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._tasks: dict[tuple[int | None, str], Any] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def show(self, event: AnyEvent) -> None:
        match event:
            case StageStarted():
                self._begin(event)
            case Stepped():
                self._update(event.job, event.stage, completed=event.done, resumed=event.resumed)
            case StageEnded():
                self._end(event.job, event.stage)
                if event.stage.startswith("decode"):
                    self._end(event.job, "blocks")
            case QueueMoved():
                self._show_queue(event)
            case Wrote():
                if queue := self._queue.get(event.job):
                    self._update(event.job, "blocks", queue=f"{queue}, {event.num_frames} frames written")
            case Finished() | Restarted() | MemoryUsed():
                self._stop()  # stdout may be the same terminal, and after a restart these stages are over
                super().show(event)
            case _:
                super().show(event)

    def _live(self) -> Bars:
        if self._bars is None:
            self._bars = progress_bars(self._console)
            self._bars.start()
        return self._bars

    def _begin(self, event: StageStarted) -> None:
        bars, key = self._live(), (event.job, event.stage)
        if key in self._tasks:  # memory ran out, and the stage begins again with smaller tiles
            bars.remove_task(self._tasks[key])
        self._tasks[key] = bars.add_task(self._name(event), total=event.total or None)

    def _update(self, job: int | None, stage: str, *, completed: int | None = None, **fields: Any) -> None:
        if self._bars is not None and (job, stage) in self._tasks:
            self._bars.update(self._tasks[job, stage], completed=completed, **fields)

    def _end(self, job: int | None, stage: str) -> None:
        """Print the final line of a stage, and remove its bar."""
        task = self._tasks.pop((job, stage), None)
        if task is None or self._bars is None:
            return
        (found,) = [one for one in self._bars.tasks if one.id == task]
        self._bars.update(task, completed=found.total or found.completed)
        self._bars.stop_task(task)
        row = self._bars.make_tasks_table([found])
        self._bars.remove_task(task)
        self._console.print(row)

    def _show_queue(self, event: QueueMoved) -> None:
        if self._bars is None:
            return
        if (event.job, "blocks") not in self._tasks:
            name = f"{self._number(event)}blocks"
            self._tasks[event.job, "blocks"] = self._bars.add_task(name, total=event.num_blocks)
        # The most denoised block counts as done only after its last step.
        done = event.block - (event.levels[1] < event.steps)
        levels = f"level {event.levels[0]}..{event.levels[1]}"
        self._queue[event.job] = levels
        queue = f"{levels}, {self._frames.get(event.job, 0)} frames written"
        self._update(event.job, "blocks", completed=done, queue=queue)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


def make_reporter(as_json: bool, *, silent: bool = False) -> Reporter:
    """Return the reporter that suits the option `--json` and the kind of stderr, such as a terminal.

    silent: whether another rank reports for this one.
    """
    if silent:
        return SilentReporter()
    if as_json:
        return JsonReporter()
    return TerminalReporter() if sys.stderr.isatty() else Reporter()
