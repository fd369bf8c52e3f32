"""What the command line shows of a run: a terminal's bars, plain lines, or JSON lines."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from paradit.cli.text import duration, memory_text, plan_text, queue_text, result_text
from paradit.config.placement import Placement
from paradit.engine.job import Report
from paradit.streams import says_utf8

PLAIN_SECONDS = 5.0
"""Where there is no terminal, a stage says at most this often how far it is."""


class Reporter(Report):
    """Plain lines: progress and warnings on stderr, results on stdout. Use it as a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        """Requests that have failed."""
        # By stage: several may run at once.
        self._total: dict[str, int] = {}
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._frames = 0
        """Written, of a long video."""
        self._queue = ""
        """How far its blocks are, as text."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def warn(self, message: str) -> None:
        self._say(f"paradit: warning: {message}")

    def explain(self, line: str) -> None:
        """Why something is done as it is: `--explain`."""
        self._say(f"paradit: {line}")

    def placement(self, placement: Placement, reason: str, seconds: dict[str, float]) -> None:  # noqa: ARG002
        """What `--placement auto` has chosen, and why; and the seconds of all that it compared, by name."""
        self._say(f"paradit: placement: {reason}")

    def request(self, index: int, count: int, prompt: str) -> None:
        """Request `index` (from 0) of `count` begins."""
        if count > 1:
            self._say(f"[{index + 1}/{count}] {prompt}")

    def plan(self, plan: dict[str, Any]) -> None:
        """What a dry run found."""
        print(plan_text(plan), flush=True)

    def result(self, result: dict[str, Any]) -> None:
        """A video is there."""
        print(result_text(result), flush=True)

    def failed(self, index: int, count: int, message: str) -> None:
        """A request has failed."""
        self.failures += 1
        number = f"[{index + 1}/{count}] " if count > 1 else ""
        self._say(f"paradit: failed: {number}{message}")

    def waiting(self, message: str) -> None:
        self._say(f"paradit: {message}")

    def restarted(self, message: str) -> None:
        """Ranks have failed, and new ones are started."""
        self._say(f"paradit: {message}")

    def resumable(self, folder: Path) -> None:
        """The run can be gone on with."""
        self._say(f"paradit: to go on: paradit resume {shlex.quote(os.path.relpath(folder))}")

    def extendable(self, folder: Path) -> None:
        """Long videos are there, and can be made longer."""
        path = shlex.quote(os.path.relpath(folder))
        self._say(f"paradit: to make it longer: paradit extend {path} --duration 30s")

    def growing(self, path: str) -> None:
        """A long video can be watched while it grows."""
        self._say(f"paradit: the video grows in {shlex.quote(path)}: it plays as far as it is there")

    def wrote(self, num_frames: int) -> None:
        self._frames = num_frames

    def queue(self, block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> None:
        self._queue = queue_text(block, num_blocks, levels, steps)

    def memory(self, by_rank: list[int], stages: list[tuple[str, ...]]) -> None:
        """Every rank's peak memory."""
        print(memory_text(by_rank, stages), flush=True)

    def started(self, name: str, total: int) -> None:
        self._total[name] = total
        self._began[name] = self._said[name] = time.monotonic()
        self._say(f"{name}: {total} steps" if total > 1 else name)
        if name.startswith("denoise"):
            self._frames, self._queue = 0, ""

    def stepped(self, name: str, done: int) -> None:
        now = time.monotonic()
        if now - self._said[name] >= PLAIN_SECONDS and done:
            self._said[name] = now
            rate, total = done / (now - self._began[name]), self._total[name]
            if total:
                left = duration((total - done) / rate)
                self._say(f"{name}: {done}/{total}, {rate:.3g} steps/s, {left} left")
            else:
                self._say(f"{name}: {done}, {rate:.3g} steps/s")
            if self._queue and name.startswith("denoise"):
                self._say(f"{self._queue}, {self._frames} frames written")

    def finished(self, name: str, seconds: float) -> None:
        self._say(f"{name}: done in {duration(seconds)}")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class SilentReporter(Reporter):
    """Says nothing but whom it waits for: a launcher's other ranks have the first one to speak for them."""

    def plan(self, plan: dict[str, Any]) -> None: ...

    def result(self, result: dict[str, Any]) -> None: ...

    def memory(self, by_rank: list[int], stages: list[tuple[str, ...]]) -> None: ...

    def waiting(self, message: str) -> None:
        super()._say(f"paradit: {message}")  # perhaps there is no other rank to say it

    def _say(self, line: str) -> None: ...


class JsonReporter(Reporter):
    """One JSON object a line on stdout, each with its `event`."""

    def warn(self, message: str) -> None:
        self._event("warning", message=message)

    def explain(self, line: str) -> None:
        self._event("explain", line=line)

    def placement(self, placement: Placement, reason: str, seconds: dict[str, float]) -> None:
        self._event("placement", **placement.flat(), reason=reason, seconds=seconds)

    def request(self, index: int, count: int, prompt: str) -> None:
        self._event("request", index=index, count=count, prompt=prompt)

    def plan(self, plan: dict[str, Any]) -> None:
        self._event("plan", **plan)

    def result(self, result: dict[str, Any]) -> None:
        self._event("result", **result)

    def failed(self, index: int, count: int, message: str) -> None:
        self.failures += 1
        self._event("failed", index=index, count=count, message=message)

    def restarted(self, message: str) -> None:
        self._event("restarted", message=message)

    def resumable(self, folder: Path) -> None:
        self._event("resumable", run_dir=str(folder))

    def extendable(self, folder: Path) -> None:
        self._event("extendable", run_dir=str(folder))

    def growing(self, path: str) -> None:
        self._event("growing", path=path)

    def queue(self, block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> None:
        about = {"block": block, "num_blocks": num_blocks, "levels": levels, "num_inference_steps": steps}
        self._event("block", **about, frames_written=self._frames)

    def memory(self, by_rank: list[int], stages: list[tuple[str, ...]]) -> None:
        self._event("memory", peak_memory_bytes_by_rank=by_rank, stages_by_rank=stages)

    def started(self, name: str, total: int) -> None:
        self._total[name] = total
        self._event("stage_start", stage=name, total=total or None)

    def stepped(self, name: str, done: int) -> None:
        self._event("step", stage=name, done=done, total=self._total[name] or None)

    def finished(self, name: str, seconds: float) -> None:
        self._event("stage_end", stage=name, seconds=round(seconds, 4))

    def _event(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}, ensure_ascii=not says_utf8()), flush=True)


class TerminalReporter(Reporter):
    """A line a stage with a bar, steps, rate and time left, on a terminal's stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def result(self, result: dict[str, Any]) -> None:
        self._stop()  # stdout may be the same terminal
        super().result(result)

    def restarted(self, message: str) -> None:
        self._stop()  # what the ranks that are gone were doing is not done any more
        super().restarted(message)

    def started(self, name: str, total: int) -> None:
        self._total[name] = total
        if name.startswith("denoise"):
            self._frames = 0
            self._tasks.pop("blocks", None)  # of the video before
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description:<8}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                _RateColumn(),
                console=self._console,
                redirect_stdout=False,  # results are for stdout, wherever it goes
            )
            self._bars.start()
        self._tasks[name] = self._bars.add_task(name, total=total or None)

    def stepped(self, name: str, done: int) -> None:
        if self._bars is not None:
            self._bars.update(self._tasks[name], completed=done)

    def finished(self, name: str, seconds: float) -> None:  # noqa: ARG002 (the bar shows them)
        if self._bars is not None:
            self._bars.update(self._tasks[name], completed=self._total[name] or None)

    def queue(self, block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> None:
        if self._bars is None:
            return
        if "blocks" not in self._tasks:
            self._tasks["blocks"] = self._bars.add_task("blocks", total=num_blocks)
        done = block - (levels[1] < steps)
        queue = f"level {levels[0]}..{levels[1]}, {self._frames} frames written"
        self._bars.update(self._tasks["blocks"], completed=done, queue=queue)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class _RateColumn(ProgressColumn):
    """`12.3 s, 2.41 steps/s, 8.1 s left`; a stage of one step has only its seconds; blocks: their queue."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        if "queue" in task.fields:
            return Text(task.fields["queue"])
        elapsed = task.finished_time if task.finished else task.elapsed
        parts = [duration(elapsed or 0.0)]
        if task.total and task.total > 1 and elapsed and task.completed:
            rate = task.completed / elapsed
            parts.append(f"{rate:.3g} steps/s")
            if not task.finished:
                parts.append(f"{duration((task.total - task.completed) / rate)} left")
        return Text(", ".join(parts))


def make_reporter(as_json: bool, *, silent: bool = False) -> Reporter:
    """The reporter that suits the option `--json` and where stderr goes.

    silent: another rank speaks for this one.
    """
    if silent:
        return SilentReporter()
    if as_json:
        return JsonReporter()
    return TerminalReporter() if sys.stderr.isatty() else Reporter()
