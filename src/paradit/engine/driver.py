"""Starts the ranks of a run, passes on what the first one tells, and ends them all when one fails."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from paradit.engine.job import Job, RankError, Report
from paradit.engine.worker import GRACE_SECONDS, Assignment, threads_per_rank, work
from paradit.models.spec import ModelSpec
from paradit.placement import Placement


def drive(
    jobs: list[Job],
    spec: ModelSpec,
    placement: Placement,
    report: Report,
    *,
    overwrite: bool,
    warm_up: bool = False,
) -> None:
    """Run `jobs` on `placement.ranks` processes of this machine. Raises RankError where one fails.

    warm_up: only measure what the stages of the first job take.
    Whatever happens, also an exception in this process such as Ctrl-C, no process is left behind.
    """
    with tempfile.TemporaryDirectory(prefix="paradit-") as folder:
        ranks: dict[Connection, BaseProcess] = {}
        try:
            for rank in range(placement.ranks):
                assignment = Assignment(
                    rank=rank,
                    local_rank=rank,
                    placement=placement,
                    init_method=f"file://{Path(folder) / 'store'}",
                    jobs=jobs,
                    spec=spec,
                    overwrite=overwrite,
                    threads=threads_per_rank(placement.ranks),
                    warm_up=warm_up,
                )
                pipe, process = _start(assignment)
                ranks[pipe] = process
            _follow(ranks, report)
        finally:
            _end(list(ranks.values()))


def _start(assignment: Assignment) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(assignment, theirs), name=str(assignment.rank))
    with _ignoring_ctrl_c():
        process.start()
    theirs.close()
    return mine, process


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """A process started within inherits it, and so is deaf to a terminal's Ctrl-C from its first moment."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _follow(ranks: dict[Connection, BaseProcess], report: Report) -> None:
    """Pass on events until every rank is done. Raises RankError when one is not."""
    running, failures = dict(ranks), dict[int, str]()
    deadline: float | None = None
    while running:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        for pipe in wait(list(running), left):
            assert isinstance(pipe, Connection)
            process = running[pipe]
            failure = _hear(pipe, process, report)
            if failure is None:
                continue
            del running[pipe]
            if failure:
                failures[int(process.name)] = failure
                deadline = deadline or time.monotonic() + GRACE_SECONDS
    if failures:
        raise RankError("\n".join(f"rank {rank}: {text}" for rank, text in sorted(failures.items())))


def _hear(pipe: Connection, process: BaseProcess, report: Report) -> str | None:
    """Take one message: None while the rank goes on, "" when it is done, else why it failed."""
    try:
        event, values = pipe.recv()
    except EOFError:
        process.join(GRACE_SECONDS)
        code = process.exitcode
        return (
            f"ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        )
    if event == "failed":
        (text,) = values
        return str(text).rstrip()
    if event == "done":
        return ""
    if event == "finished":
        name, seconds = values
        report.seconds[name] = report.seconds.get(name, 0.0) + seconds
    if event == "failed_request":
        report.failed(*values)
    else:
        getattr(report, event)(*values)
    return None


def _end(processes: list[BaseProcess]) -> None:
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
