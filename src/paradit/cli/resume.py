"""Command `paradit resume`: find an interrupted run, check it, and make its unfinished videos."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from paradit.cli.commands.resume_options import ResumeOptions
from paradit.cli.reporters import make_reporter
from paradit.cli.run_model import complete_run_model, find_run_model, run_spec
from paradit.cli.signals import stop
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.engine.admission import admit
from paradit.engine.job import Run
from paradit.engine.reserve import files_reserved
from paradit.engine.run import check_devices, make
from paradit.engine.run_folder import RUNS, RunFolder, find_run, unfinished
from paradit.launcher_environment import check_meeting_point, is_first_rank, launched
from paradit.scheduler_check import check_scheduler


def resume(options: ResumeOptions) -> int:
    """Make a run's unfinished videos, and return the exit code: 1 if a request has failed.

    Raises InputError if the run cannot be resumed, before any file is made.
    """
    with make_reporter(options.json, silent=not is_first_rank()) as report:
        folder = find_run(options.run_dir) if options.run_dir is not None else RunFolder(_only_one())
        run = folder.read()
        here = launched()
        if here and here.ranks != run.placement.ranks:
            raise InputError(
                f"the run has {run.placement.ranks} ranks, but torchrun started {here.ranks}: {here.unset}"
            )
        _check_outputs(run, folder, options.overwrite)
        folder.check_inputs(run)
        model = find_run_model(run)
        spec = run_spec(run, model)
        # Resolved again, which checks all values: `run.json` may have been changed by hand.
        jobs = tuple(replace(job, request=resolve(job.request.asked(), spec)) for job in run.jobs)
        run = replace(run, jobs=jobs)
        if here:
            check_meeting_point(here)
        check_devices(run.placement, run.jobs[0].request.dtype)
        left = [job for job in run.jobs if not folder.is_done(job)]
        for job in left:
            check_scheduler(spec, job.request)
        admit(left, spec, run.placement, report.warn, known=())
        done = len(run.jobs) - len(left)
        if done:
            report.warn(f"{done} of {len(run.jobs)} videos are done already")
        # Existing outputs were checked just before.
        run = replace(run, overwrite=True)
        with files_reserved(left, overwrite=True):
            complete_run_model(run, model)
            make(run, spec, folder if is_first_rank() else None, report, stop)
        return int(report.failures > 0)


def _only_one() -> Path:
    """Return the path to the only unfinished run here. Raises InputError if there are several, or none."""
    runs = unfinished(Path())
    if len(runs) == 1:
        return runs[0].path
    found = ", ".join(str(run.path) for run in runs) or f"none in {RUNS}"
    raise InputError(f"name the run to resume; unfinished: {found}")


def _check_outputs(run: Run, folder: RunFolder, overwrite: bool) -> None:
    if overwrite or run.overwrite:
        return
    for job in run.jobs:
        if not folder.has_video(job) and os.path.lexists(job.output) and Path(job.output).is_file():
            raise InputError(
                f"output {job.output!r} was written by something else since: move it, or use --overwrite"
            )
