"""Run jobs as a placement says: in this process, by ranks started here, or as one of a launcher's."""

from __future__ import annotations

import os

from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.engine.events import Extendable, Resumable
from paradit.engine.job import Job, Run
from paradit.engine.run_folder import RunFolder
from paradit.kernels import check_kernel_on
from paradit.launched import launched
from paradit.models.spec import ModelSpec
from paradit.progress import Progress
from paradit.stopping import Stop
from paradit.trace.spans import Tracing, recording


def check_devices(placement: Placement, dtype: str | None) -> None:
    """Refuse more ranks on this machine than it has GPUs, and a kernel that it cannot run. Raises InputError.

    Any number of ranks runs on a CPU. dtype: as in a request.
    """
    import torch

    from paradit.engine.devices import SHARE_GPUS, may_share_gpus

    cuda = torch.cuda.is_available()
    check_kernel_on(placement.kernel, "cuda" if cuda else "cpu", dtype or ("bf16" if cuda else "fp32"))

    here = launched()
    ranks = (here.local_ranks if here else None) or placement.ranks
    there = torch.cuda.device_count()
    if cuda and ranks > there and not may_share_gpus():
        raise InputError(
            f"{ranks} ranks need a GPU each, and this machine has {there}: use at most {there} (or, to try "
            f"what many do, let them share: {SHARE_GPUS}=1, with NCCL 2.30 or later)"
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
    """Make what is left of a run. Of a launcher's ranks only the first has a folder.

    At its end the folder is removed, unless something in it could be gone on with (`Resumable`), or long
    videos could be made longer (`Extendable`). Raises RankError if the ranks that are started here cannot
    start, Interrupted after a stop.
    """
    if folder is None:
        _as_launched(run, list(run.jobs), spec, None, report=report, stop=stop)
        return
    with folder.locked():
        folder.sweep(run.jobs)
        folder.note_process(os.getpid())
        try:
            _make(run, spec, folder, report, stop, tracing=tracing)
        finally:
            _leave(run, folder, report)


def _leave(run: Run, folder: RunFolder, report: Progress) -> None:
    """Keep the folder for what can still come of it, or remove it."""
    if all(folder.is_done(job) for job in run.jobs):
        if any(folder.is_extendable(job) for job in run.jobs):
            report.emit(Extendable(folder=str(folder.path)))
        else:
            folder.remove()
    elif folder.has_something():
        report.emit(Resumable(folder=str(folder.path)))
    else:
        folder.remove()


def _make(
    run: Run, spec: ModelSpec, folder: RunFolder, report: Progress, stop: Stop, *, tracing: Tracing | None
) -> None:
    left = [job for job in run.jobs if not folder.is_done(job)]
    if launched():
        _as_launched(run, left, spec, folder, report=report, stop=stop)
    elif run.placement.ranks == 1:
        from paradit.engine.keeper import Keeper
        from paradit.engine.make import make_videos

        keeper = Keeper(folder, stop, report, run.checkpoint_steps)
        with recording(tracing, rank=0):
            make_videos(
                left,
                spec,
                run.placement,
                report,
                overwrite=run.overwrite,
                metadata=run.metadata,
                keeper=keeper,
            )
    else:
        from paradit.engine.driver import drive
        from paradit.engine.launchers import new_launcher
        from paradit.engine.started import Ranks, preloaded
        from paradit.engine.worker import Assignment

        def start(run: Run, jobs: list[Job]) -> Ranks:
            work = Assignment(run=run, jobs=jobs, spec=spec, folder=folder.path, tracing=tracing)
            return Ranks(new_launcher(), run.placement.ranks, work, preloaded(spec))

        drive(run, folder, report=report, stop=stop, start=start)


def _as_launched(
    run: Run, jobs: list[Job], spec: ModelSpec, folder: RunFolder | None, *, report: Progress, stop: Stop
) -> None:
    from paradit.engine.devices import device_of
    from paradit.engine.launchers import threads_per_rank
    from paradit.engine.worker import Assignment, Place, make_as_rank

    here = launched()
    assert here is not None
    assignment = Assignment(run=run, jobs=jobs, spec=spec, folder=folder.path if folder else None)
    threads = threads_per_rank(here.local_ranks or run.placement.ranks)
    place = Place(here.rank, device_of(here.local_rank), threads, here)
    make_as_rank(assignment, place, report, stop)
