"""One rank's process: joins the world, makes the videos with the others, and tells the driver."""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paradit.config.placement import Placement
from paradit.distributed.world import World, join_world
from paradit.engine.channel import Connection
from paradit.engine.events import Waiting
from paradit.engine.job import Job, Run
from paradit.engine.keeper import Keeper
from paradit.engine.launchers import Seat
from paradit.engine.make import make_videos
from paradit.engine.run_folder import RunFolder
from paradit.engine.started import listen
from paradit.launched import Launched
from paradit.models.spec import ModelSpec
from paradit.progress import Progress, renaming
from paradit.stopping import Interrupted, Stop
from paradit.streams import make_safe
from paradit.trace.spans import Tracing, recording

WAIT_SECONDS = 24 * 3600.0
HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the ranks of a world are to do."""

    run: Run
    jobs: list[Job]
    """Those of the run's that are left to do."""
    spec: ModelSpec
    folder: Path | None
    """Of the run; None: this rank keeps nothing."""
    tracing: Tracing | None = None

    def __call__(self, seat: Seat) -> None:
        """The main function of a rank's process.

        Its last message is `done`, `stopped` (after a step, as it was told to), or `raised` with a traceback.
        """
        assert self.folder is not None
        folder, stop = RunFolder(self.folder), Stop()
        folder.note_process(os.getpid())
        make_safe()
        driver = Connection(seat.address, seat.token, seat.rank)

        def hear(word: str, _: tuple[Any, ...]) -> None:
            stop.wanted |= word == "stop"

        listen(driver, hear, lambda: folder.sweep(self.jobs, [os.getpid()]))
        threading.Thread(target=_beat, args=(driver,), daemon=True).start()
        place = Place(seat.rank, torch.device(seat.device), seat.threads, seat.meet)
        try:
            make_as_rank(self, place, _progress(driver, seat.rank, self.run.placement), stop)
            last: tuple[str, ...] = ("done",)
        except Interrupted:
            last = ("stopped",)
        except BaseException:
            last = ("raised", traceback.format_exc())
        with contextlib.suppress(OSError):  # the driver may be gone
            driver.send(*last)
        # No orderly exit: it would wait for messages that ranks which failed never send.
        os._exit(last[0] == "raised")


@dataclass(frozen=True)
class Place:
    """Where a rank is."""

    rank: int
    device: torch.device
    threads: int
    meet: Path | Launched
    """Where the ranks meet: a file, or what a launcher such as torchrun has said."""


def _progress(driver: Connection, rank: int, placement: Placement) -> Progress:
    """What tells the driver; a stage that several ranks do at once has the rank in its name."""
    names = {"decode": f"decode on rank {rank}"} if len(placement.decode_ranks) > 1 else {}
    return Progress(renaming(driver.emit, lambda stage: names.get(stage, stage)))


def make_as_rank(assignment: Assignment, place: Place, report: Progress, stop: Stop) -> None:
    """Be a rank in this process: make the videos with the others."""
    torch.set_num_threads(place.threads)
    run = assignment.run
    folder = RunFolder(assignment.folder) if assignment.folder else None
    # The driver notices a dead rank at once; a long wait, such as for the decode, is no failure.
    with (
        recording(assignment.tracing, place.rank),
        join_world(
            place.rank,
            run.placement.ranks,
            place.meet,
            device=place.device,
            timeout=WAIT_SECONDS,
            tell=lambda message: report.emit(Waiting(message=message)),
        ) as world,
    ):
        agree(world, run.placement)
        make_videos(
            assignment.jobs,
            assignment.spec,
            run.placement,
            report,
            overwrite=run.overwrite,
            metadata=run.metadata,
            world=world,
            device=place.device,
            keeper=Keeper(folder, stop, report, run.checkpoint_steps) if folder else None,
        )


def agree(world: World, placement: Placement) -> None:
    """Raise RuntimeError where this rank has another placement than the first, and so would wait for ever.

    Each of torchrun's ranks plans by a file that might have changed meanwhile.
    """
    mine = repr(placement)
    if world.rank == 0:
        world.tell("placement", mine)
    elif (others := world.word("placement")) != mine:
        raise RuntimeError(f"rank {world.rank} has {mine}, and rank 0 {others}")


def _beat(driver: Connection) -> None:
    """Say, again and again, that this process is there."""
    wait = threading.Event()
    with contextlib.suppress(OSError):
        while True:
            driver.send("alive")
            wait.wait(HEARTBEAT_SECONDS)
