"""Work of a rank that torchrun or another launcher has started: a fixed list of videos.

There is no driver (process that hands out work to ranks).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from paradit.config.placement import Placement
from paradit.config.request_inputs import INPUTS
from paradit.distributed.world import World
from paradit.engine.job import Job
from paradit.engine.orders import Inbox, Order
from paradit.engine.rank import rank_program
from paradit.engine.run_folder import RunFolder
from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.stopping import Stop


def make_videos(
    jobs: list[Job],
    spec: ModelSpec,
    placement: Placement,
    progress: Progress,
    *,
    overwrite: bool,
    metadata: bool = True,
    world: World | None = None,
    device: torch.device | None = None,
    folder: RunFolder | None = None,
    stop: Stop | None = None,
    checkpoint_steps: int | None = None,
) -> None:
    """Do this rank's part of a fixed list of jobs; all ranks of the placement call it together.

    folder: the run's folder, in which progress is saved. Only the first rank gets a folder; that rank tells
    the others which jobs are left, and where the copies of their pictures and videos are.
    """
    inbox = Inbox(stop)
    for position, (number, is_denoised, copies) in enumerate(_left(jobs, folder, world)):
        inbox.add(
            Order(
                number=number,
                job=_reading(jobs[number], copies),
                folder=folder.path if folder else None,
                is_denoised=is_denoised,
                replica=position % placement.replicas,
                overwrite=overwrite,
                metadata=metadata,
                checkpoint_steps=checkpoint_steps,
            )
        )
    inbox.end()
    rank_program(inbox, spec, placement, progress.emit, world=world, device=device)()


def _left(
    jobs: list[Job], folder: RunFolder | None, world: World | None
) -> list[tuple[int, bool, dict[str, Any]]]:
    """Return the unfinished jobs, as the first rank knows them.

    Each is its index, whether its denoised latents are saved, and the paths of its pictures and videos.
    """
    left = [
        (
            number,
            folder.is_denoised(job) if folder else False,
            {name: getattr(job.request, name) for name in INPUTS},
        )
        for number, job in enumerate(jobs)
        if not folder or not folder.is_done(job)
    ]
    if world is not None and world.rank == 0:
        world.publish("jobs", json.dumps(left))
    elif world is not None:
        left = json.loads(world.lookup("jobs"))
    return left


def _reading(job: Job, copies: dict[str, Any]) -> Job:
    """Return the job with the first rank's paths of pictures and videos, if these files are here too.

    Another machine may not have the run's folder: there, the job's own paths stay.
    """
    here: dict[str, Any] = {name: path for name, path in copies.items() if path and Path(path).is_file()}
    return replace(job, request=replace(job.request, **here)) if here else job
