"""One rank's process: joins the world, makes the videos with the others, and tells the driver."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from paradit.engine.job import Job, Report
from paradit.models.spec import ModelSpec
from paradit.placement import Placement

WAIT_SECONDS = 24 * 3600.0
GRACE_SECONDS = 2.0
"""How long a rank that is told to end may tidy up."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a rank is to do."""

    rank: int
    local_rank: int
    """Among the ranks of its machine; which GPU it takes."""
    placement: Placement
    init_method: str
    jobs: list[Job]
    spec: ModelSpec
    overwrite: bool
    threads: int


def threads_per_rank(ranks: int) -> int:
    """The machine's cores over its ranks, unless OMP_NUM_THREADS says otherwise."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(wanted) if wanted.isdecimal() and int(wanted) else max(1, cores // ranks)


class PipeReport(Report):
    """Sends every event to the driver; a stage that several ranks do at once has the rank in its name."""

    def __init__(self, pipe: Connection, rank: int, placement: Placement) -> None:
        super().__init__()
        self._pipe = pipe
        self._names = {"decode": f"decode on rank {rank}"} if len(placement.decode_groups) > 1 else {}

    def started(self, name: str, total: int) -> None:
        self._send("started", self._names.get(name, name), total)

    def stepped(self, name: str, done: int) -> None:
        self._send("stepped", self._names.get(name, name), done)

    def finished(self, name: str, seconds: float) -> None:
        self._send("finished", self._names.get(name, name), seconds)

    def warn(self, message: str) -> None:
        self._send("warn", message)

    def request(self, index: int, count: int, prompt: str) -> None:
        self._send("request", index, count, prompt)

    def result(self, result: dict[str, Any]) -> None:
        self._send("result", result)

    def failed(self, index: int, count: int, message: str) -> None:
        self._send("failed_request", index, count, message)

    def memory(self, by_rank: list[int], stages: list[tuple[str, ...]]) -> None:
        self._send("memory", by_rank, stages)

    def _send(self, event: str, *values: Any) -> None:
        self._pipe.send((event, values))


def work(assignment: Assignment, pipe: Connection) -> None:
    """The main function of a process that `drive` starts.

    Its last message is `done`, or `failed` with a traceback.
    """
    # Ctrl-C reaches every process of a terminal; the driver alone decides, and ends the ranks with SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    try:
        make_as_rank(assignment, PipeReport(pipe, assignment.rank, assignment.placement))
        pipe.send(("done", ()))
    except SystemExit:
        os._exit(1)
    except BaseException:
        with contextlib.suppress(OSError):  # the driver may be gone
            pipe.send(("failed", (traceback.format_exc(),)))
        # No orderly exit: it would wait for messages that the other ranks never send.
        os._exit(1)
    os._exit(0)  # all is written and said


def make_as_rank(assignment: Assignment, report: Report) -> None:
    """Be a rank in this process: make the videos with the others."""
    import torch

    from paradit.distributed.world import join_world
    from paradit.engine.make import make_videos

    torch.set_num_threads(assignment.threads)
    rank, placement = assignment.rank, assignment.placement
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", assignment.local_rank) if cuda else torch.device("cpu")
    # The driver notices a dead rank at once; a long wait, such as for the decode, is no failure.
    with join_world(
        rank, placement.ranks, assignment.init_method, device=device, timeout=WAIT_SECONDS
    ) as world:
        make_videos(
            assignment.jobs,
            assignment.spec,
            placement,
            report,
            overwrite=assignment.overwrite,
            world=world,
            device=device,
        )


def _stop(_signum: int, _frame: FrameType | None) -> None:
    # As an exception, so that partial files are removed on the way out.
    raise SystemExit(1)


def _end_with_the_driver() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # first the orderly way, which removes partial files
        time.sleep(GRACE_SECONDS)
        os._exit(1)
