"""Run jobs where a placement says: in this process, or by ranks that a driver starts."""

from __future__ import annotations

from paradit.engine.job import Job, Report
from paradit.models.spec import ModelSpec
from paradit.placement import Placement


def run(jobs: list[Job], spec: ModelSpec, placement: Placement, report: Report, *, overwrite: bool) -> None:
    """Make the videos of `jobs`. Raises RankError where a rank fails."""
    if placement.ranks == 1:
        from paradit.engine.make import make_videos

        make_videos(jobs, spec, report, overwrite=overwrite)
    else:
        from paradit.engine.driver import drive

        drive(jobs, spec, placement, report, overwrite=overwrite)
