"""Command `paradit extend`: make a run's long videos longer.

Each video resumes from the last saved state in which its end did not show.
"""

from __future__ import annotations

import math
from dataclasses import replace

from paradit.cli.commands.extend_options import ExtendOptions
from paradit.cli.reporters import make_reporter
from paradit.cli.run_model import complete_run_model, find_run_model, run_spec
from paradit.cli.signals import stop
from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement, method_of
from paradit.config.placement import Placement
from paradit.config.requests import parse_duration
from paradit.config.values import NONE
from paradit.engine.admission import admit
from paradit.engine.job import Job, Run
from paradit.engine.reserve import files_reserved
from paradit.engine.run import check_devices, make
from paradit.engine.run_folder import RunFolder, find_run
from paradit.launcher_environment import launched
from paradit.models.spec import ModelSpec
from paradit.scheduler_check import check_scheduler
from paradit.video.writer import check_target


def extend(options: ExtendOptions) -> int:
    """Make the videos of a run longer, and return the exit code: 1 if a video has failed.

    Raises InputError if the videos cannot be made longer, before any file is made.
    """
    with make_reporter(options.json) as report:
        folder = find_run(options.run_dir)
        run = folder.read()
        _check_alone(options, run)
        folder.check_inputs(run)
        model = find_run_model(run)
        spec = run_spec(run, model)
        longer = _longer(run, options, folder, spec)
        for job in longer.jobs:
            check_placement(longer.placement, job.request, spec)
            check_scheduler(spec, job.request)
        check_devices(longer.placement, longer.jobs[0].request.dtype)
        admit(longer.jobs, spec, longer.placement, report.warn, known=("--ranks",))
        for job in run.jobs:
            if not job.request.endless:  # an endless video had no end that could show
                again = method_of(job.request).made_again(job.request, spec)
                report.warn(
                    f"blocks {again[0]} to {again[-1]} were denoised next to the old end, and are made again"
                    + (f" ({job.request.prompt!r})" if len(run.jobs) > 1 else "")
                )
        with files_reserved(longer.jobs, overwrite=True):  # what may be replaced was checked in `_longer`
            complete_run_model(run, model)
            with folder.locked():  # no other process may work on the run; `make` takes the lock again
                folder.reopen(longer)
            make(longer, spec, folder, report, stop)
        return int(report.failures > 0)


def _check_alone(options: ExtendOptions, run: Run) -> None:
    """Refuse two uses of `paradit extend` that cannot work. Raises InputError.

    One is to start it by a launcher such as torchrun, because the command starts its ranks itself. The other
    is a single output name for a run of several videos.
    """
    if here := launched():
        raise InputError(
            f"paradit extend starts its ranks itself (--ranks): run it without torchrun, or {here.unset}"
        )
    if options.output is not None and len(run.jobs) > 1:
        raise InputError(
            f"output {options.output!r} names one file, but the run has {len(run.jobs)} videos: leave it out"
        )


def _longer(run: Run, options: ExtendOptions, folder: RunFolder, spec: ModelSpec) -> Run:
    """Return a copy of the run in which all videos are longer. Raises InputError if that is not possible."""
    jobs = []
    for job in run.jobs:
        more = _more_frames(options.duration, options.num_frames, job.request.fps)
        jobs.append(_longer_job(job, folder, spec, more, options.output))
    if options.output is not None:
        check_target(options.output, fps=jobs[0].request.fps, overwrite=options.overwrite, crf=jobs[0].crf)
    placement = _placement(run, options.ranks, spec)
    return replace(run, jobs=tuple(jobs), placement=placement, overwrite=True)


def _more_frames(duration: str | None, num_frames: int | None, fps: float) -> int:
    if (duration is None) == (num_frames is None):
        raise InputError("give a --duration to add, such as 30s, or --num-frames")
    seconds = parse_duration(duration) if duration is not None else 0.0
    if math.isinf(seconds):
        raise InputError(
            "the duration to add must be finite, got inf: use generate --duration inf from the start"
        )
    more = num_frames if num_frames is not None else round(seconds * fps)
    if more < 1:
        raise InputError(f"at least one frame must be added, got {num_frames or duration or 0}")
    return more


def _longer_job(job: Job, folder: RunFolder, spec: ModelSpec, more: int, output: str | None) -> Job:
    """Return a copy of a job whose video is `more` frames longer. Raises InputError if this is impossible."""
    finished = folder.num_blocks(job.index) if job.request.endless else None
    if finished is None and not folder.is_extendable(job):
        raise InputError(f"{job.output!r} cannot be extended: {_why_not(job, folder)}")
    longer = method_of(job.request).longer(job.request, spec, more, finished, str(folder.path))
    return replace(job, request=longer, output=output if output is not None else job.output)


def _why_not(job: Job, folder: RunFolder) -> str:
    if not folder.is_done(job):
        return f"it is not finished (paradit resume {folder.path})"
    return "it was not made in frame blocks"


def _placement(run: Run, ranks: int | None, spec: ModelSpec) -> Placement:
    """Return the run's placement, or the nearest placement with another number of ranks.

    ranks: number of ranks that the user asks for; None: as before. With another number of ranks, all stages
    are on the same ranks; guidance branches and layers are divided as before if that is possible.
    """
    before = run.placement
    if ranks is None:
        return before
    together = replace(
        before, ranks=ranks, encode=None, denoise=None, decode=None, replicas=1, decode_degree=1,
        cfg_degree=before.cfg_degree if ranks % before.cfg_degree == 0 else 1,
    )  # fmt: skip
    try:
        check_placement(together, run.jobs[0].request, spec)
    except InputError:  # the layers do not divide among these ranks as before
        return replace(together, method_options=NONE)
    return together
