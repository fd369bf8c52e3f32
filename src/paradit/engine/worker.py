"""One rank's process: joins the world, makes the videos with the others, and tells the driver."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paradit.config.placement import Placement
from paradit.engine.events import Waiting
from paradit.engine.job import Interrupted, Job, Run, Stop
from paradit.engine.run_folder import RunFolder
from paradit.launched import Launched
from paradit.models.spec import ModelSpec
from paradit.progress import Event, Progress, renaming
from paradit.scheduling.balance import StageSeconds
from paradit.streams import make_safe
from paradit.trace.spans import Tracing, recording

if TYPE_CHECKING:
    from paradit.distributed.world import World

WAIT_SECONDS = 24 * 3600.0
HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a rank is to do."""

    rank: int
    local_rank: int
    """Among the ranks of its machine; which GPU it takes."""
    run: Run
    jobs: list[Job]
    """Those of the run's that are left to do."""
    spec: ModelSpec
    folder: Path | None
    """Of the run; None: this rank keeps nothing."""
    threads: int
    meet: Path | Launched = Path()
    """Where the ranks meet: a file that whoever starts them names, or what a launcher has said."""
    tracing: Tracing | None = None
    warm_up: bool = False
    """Only measure what the stages of the first job take."""


def threads_per_rank(ranks: int) -> int:
    """The machine's cores over its ranks, unless OMP_NUM_THREADS says otherwise."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(wanted) if wanted.isdecimal() and int(wanted) else max(1, cores // ranks)


class Pipe:
    """Sends messages to the driver; several threads may."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._one_at_a_time = pipe, threading.Lock()

    def send(self, event: str, *values: Any) -> None:
        with self._one_at_a_time:
            self._pipe.send((event, values))

    def emit(self, event: Event) -> None:
        self.send("event", event)


def _progress(pipe: Pipe, rank: int, placement: Placement) -> Progress:
    """What tells the driver; a stage that several ranks do at once has the rank in its name."""
    names = {"decode": f"decode on rank {rank}"} if len(placement.decode_ranks) > 1 else {}
    return Progress(renaming(pipe.emit, lambda stage: names.get(stage, stage)))


def work(assignment: Assignment, pipe: Connection) -> None:
    """The main function of a process that a launcher starts.

    Its last message is `done`, `stopped` (after a step, as it was told to), or `raised` with a traceback.
    """
    # Ctrl-C reaches every process of a terminal; the driver alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert assignment.folder is not None
    folder = RunFolder(assignment.folder)
    folder.note_process(os.getpid())
    _speak_to(folder.log(assignment.rank))
    make_safe()
    driver = Pipe(pipe)
    report = _progress(driver, assignment.rank, assignment.run.placement)
    stop = Stop()
    threading.Thread(target=_listen, args=(pipe, folder, assignment.jobs, stop), daemon=True).start()
    threading.Thread(target=_beat, args=(driver,), daemon=True).start()
    try:
        measured = make_as_rank(assignment, report, stop)
        if measured is not None:
            driver.send("measured", measured)
        last: tuple[str, ...] = ("done",)
    except Interrupted:
        last = ("stopped",)
    except BaseException:
        last = ("raised", traceback.format_exc())
    with contextlib.suppress(OSError):  # the driver may be gone
        driver.send(*last)
    # No orderly exit: it would wait for messages that ranks which failed never send.
    os._exit(last[0] == "raised")


def make_as_rank(assignment: Assignment, report: Progress, stop: Stop) -> StageSeconds | None:
    """Be a rank in this process: make the videos with the others, or return what a warm-up has measured."""
    import torch

    from paradit.distributed.world import join_world
    from paradit.engine.devices import device_of
    from paradit.engine.keeper import Keeper
    from paradit.engine.make import make_videos

    torch.set_num_threads(assignment.threads)
    rank, run = assignment.rank, assignment.run
    device = device_of(assignment.local_rank)
    folder = RunFolder(assignment.folder) if assignment.folder else None
    # The driver notices a dead rank at once; a long wait, such as for the decode, is no failure.
    with (
        recording(assignment.tracing, rank),
        join_world(
            rank,
            run.placement.ranks,
            assignment.meet,
            device=device,
            timeout=WAIT_SECONDS,
            tell=lambda message: report.emit(Waiting(message=message)),
        ) as world,
    ):
        agree(world, run.placement)
        if assignment.warm_up:
            from paradit.engine.warmup import measure

            seconds = measure(world, assignment.spec, assignment.jobs[0].request, run.placement)
            return seconds if rank == 0 else None
        make_videos(
            assignment.jobs,
            assignment.spec,
            run.placement,
            report,
            overwrite=run.overwrite,
            metadata=run.metadata,
            world=world,
            device=device,
            keeper=Keeper(folder, stop, report, run.checkpoint_steps) if folder else None,
        )
    return None


def agree(world: World, placement: Placement) -> None:
    """Raise RuntimeError where this rank has another placement than the first, and so would wait for ever.

    Each of torchrun's ranks plans by a file that might have changed meanwhile.
    """
    mine = repr(placement)
    if world.rank == 0:
        world.tell("placement", mine)
    elif (others := world.word("placement")) != mine:
        raise RuntimeError(f"rank {world.rank} has {mine}, and rank 0 {others}")


def _speak_to(log: Path) -> None:
    """Have all that libraries write go to a file, as do the stacks of a crash."""
    with contextlib.suppress(OSError), log.open("a") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    faulthandler.enable()


def _listen(pipe: Connection, folder: RunFolder, jobs: list[Job], stop: Stop) -> None:
    """Do what the driver says, at any time; without a driver, end."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            message = pipe.recv()
            if message == "stop":
                stop.wanted = True
            elif message == "stacks":
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
    folder.sweep(jobs, [os.getpid()])
    os._exit(1)


def _beat(driver: Pipe) -> None:
    """Say, again and again, that this process is there."""
    wait = threading.Event()
    with contextlib.suppress(OSError):
        while True:
            driver.send("alive")
            wait.wait(HEARTBEAT_SECONDS)
