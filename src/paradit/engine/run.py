"""Execution of a run: in this process, on ranks that it starts, or as one of the ranks of a launcher."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from paradit.attention_backends import check_backend_on
from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.engine.driver import HANG_SECONDS, Driver
from paradit.engine.events import Cancelled, Extendable, Resumable, Waiting
from paradit.engine.job import Job, Run
from paradit.engine.launchers import find_launcher, new_launcher, threads_per_rank
from paradit.engine.orders import Inbox, Order
from paradit.engine.run_folder import RunFolder
from paradit.engine.started_ranks import Ranks, preloaded
from paradit.launcher_environment import launched
from paradit.models.spec import ModelSpec
from paradit.progress import Emit, Event, Progress, StageEnded, StageStarted
from paradit.stopping import Interrupted, Stop
from paradit.trace.spans import Tracing, recording

_LOG = logging.getLogger(__name__)


def check_devices(placement: Placement, dtype: str | None) -> None:
    """Refuse more ranks than this machine has GPUs, or an attention backend that does not run here.

    Any number of ranks may run on a CPU. dtype: name of the data type that the request asks for; None: the
    usual one of the device. Raises InputError.
    """
    from paradit.devices import SHARE_GPUS, lack_gpus, num_gpus

    cuda = num_gpus() > 0
    check_backend_on(
        placement.attention_backend, "cuda" if cuda else "cpu", dtype or ("bf16" if cuda else "fp32")
    )

    here = launched()
    ranks = (here.local_ranks if here else None) or placement.ranks
    if lack_gpus(ranks):
        there = num_gpus()
        raise InputError(
            f"{ranks} ranks need a GPU each, but this machine has {there}: use at most {there} (or, for a "
            f"trial, let ranks share GPUs: {SHARE_GPUS}=1, with NCCL 2.30 or later)"
        )


def make(
    run: Run,
    spec: ModelSpec,
    folder: RunFolder | None,
    report: Progress,
    stop: Stop,
    *,
    tracing: Tracing | None = None,
) -> None:
    """Make those of a run's videos that are not done yet.

    folder: the run's folder; if a launcher has started the ranks, only the first rank has it. At the end the
    folder is removed, unless the run can be resumed from it (`Resumable`), or long videos can be made longer
    (`Extendable`). Raises RankError if the ranks that are started here cannot start, and Interrupted after
    the user has asked to stop.
    """
    if folder is None:
        _make_as_launched(run, spec, None, report, stop)
        return
    with folder.locked():
        folder.sweep(run.jobs)  # what an earlier process left that was killed
        folder.note_process(os.getpid())
        try:
            if launched():
                _make_as_launched(run, spec, folder, report, stop)
                return
            driver = make_driver(
                spec, run.placement, report.emit, stop=stop, hang_limit=run.hang_limit, tracing=tracing
            )
            for job in run.jobs:
                if not folder.is_done(job):
                    driver.add(order_of(run, job, folder, number=job.index))
            driver.end()
            # A single rank runs in this process; started ranks record their own traces.
            with recording(tracing if run.placement.ranks == 1 else None, rank=0):
                driver.run()
        finally:
            leave(run, folder, report.emit)


def leave(run: Run, folder: RunFolder, emit: Emit) -> None:
    """Remove a run's folder, unless it is still needed to resume the run or to make its videos longer.

    If the folder stays, an event says why.
    """
    if all(folder.is_done(job) for job in run.jobs):
        if any(folder.is_extendable(job) for job in run.jobs):
            emit(Extendable(folder=str(folder.path)))
        else:
            folder.remove()
    elif folder.has_something():
        emit(Resumable(folder=str(folder.path)))
    else:
        folder.remove()


def make_driver(
    spec: ModelSpec,
    placement: Placement,
    emit: Emit,
    *,
    stop: Stop | None = None,
    hang_limit: float = HANG_SECONDS,
    tracing: Tracing | None = None,
) -> Driver:
    """Return a driver, which starts the ranks of a placement and hands out work to them.

    A single rank runs in the driver's thread. tracing: settings for the trace that the started ranks record.
    """

    def start() -> Ranks:
        from paradit.engine.worker import Worker

        launcher = new_launcher()
        if not launcher.capabilities.shared_folder:
            raise InputError("the launcher's ranks do not see this machine's folders, where runs are kept")
        worker = Worker(spec=spec, placement=placement, tracing=tracing)
        return Ranks(launcher, placement.ranks, worker, preloaded(spec))

    def here(inbox: Inbox, emit: Emit) -> Callable[[], None]:
        from paradit.engine.rank import rank_program

        return rank_program(inbox, spec, placement, emit)

    alone = placement.ranks == 1
    if not alone:
        find_launcher()  # refuses an unknown one before anything starts
    _LOG.info("placement: %s", placement)
    return Driver(
        spec,
        placement,
        emit,
        start=None if alone else start,
        here=here if alone else None,
        stop=stop,
        hang_limit=hang_limit,
    )


def order_of(run: Run, job: Job, folder: RunFolder | None, number: int) -> Order:
    """Return the order for one of a run's jobs; an order is a job in the form in which ranks receive it.

    number: id of the order, unique among the driver's orders.
    """
    return Order(
        number=number,
        job=job,
        folder=folder.path if folder else None,
        overwrite=run.overwrite,
        metadata=run.metadata,
        checkpoint_steps=run.checkpoint_steps,
    )


def _make_as_launched(
    run: Run, spec: ModelSpec, folder: RunFolder | None, report: Progress, stop: Stop
) -> None:
    """Do this rank's part of a run, as one of the ranks that a launcher has started."""
    import torch

    from paradit.devices import device_of
    from paradit.distributed.world import join_world
    from paradit.engine.fixed_list import make_videos
    from paradit.engine.worker import WAIT_SECONDS, agree

    here = launched()
    assert here is not None
    torch.set_num_threads(threads_per_rank(here.local_ranks or run.placement.ranks))
    device, ranks = device_of(here.local_rank), run.placement.ranks
    _LOG.info("placement: %s, on %s", run.placement, device)

    def warn(message: str) -> None:
        report.emit(Waiting(message=message))

    with join_world(here.rank, ranks, here, device=device, timeout=WAIT_SECONDS, warn=warn) as world:
        agree(world, run.placement)
        make_videos(
            list(run.jobs),
            spec,
            run.placement,
            Progress(heeded(report.emit, stop)),
            overwrite=run.overwrite,
            metadata=run.metadata,
            world=world,
            device=device,
            folder=folder,
            stop=stop,
            checkpoint_steps=run.checkpoint_steps,
        )
        if stop.wanted:
            raise Interrupted


def heeded(emit: Emit, stop: Stop) -> Emit:
    """Return a function that passes events on to `emit`, and keeps the flag `stop.heeded` up to date.

    The flag is true while a request is being denoised. Only then do ranks check after every step whether the
    user has asked to stop. After the user has asked, events that say that requests are cancelled are not
    passed on.
    """

    def emit_heeded(event: Event) -> None:
        match event:
            case StageStarted() if event.stage.startswith("denoise"):
                stop.heeded = True
            case StageEnded() if event.stage.startswith("denoise"):
                stop.heeded = False
            case Cancelled() if stop.wanted:
                return
        emit(event)

    return emit_heeded
