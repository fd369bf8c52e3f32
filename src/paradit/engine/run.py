"""Run jobs as a placement says: in this process, by ranks started here, or as one of torchrun's."""

from __future__ import annotations

import os

from paradit.engine.job import Job, Report
from paradit.errors import InputError
from paradit.kernels import check_kernel_on
from paradit.models.spec import ModelSpec
from paradit.placement import Placement


def ranks_of_torchrun() -> int | None:
    """How many ranks torchrun started, where this process is one of them."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else None


def ranks_of_this_machine() -> int | None:
    """How many of torchrun's ranks are on this machine; None without torchrun: all are."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in os.environ else None


def is_first_rank() -> bool:
    """Whether this process is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def check_devices(placement: Placement, dtype: str | None) -> None:
    """Refuse more ranks on this machine than it has GPUs, and a kernel that it cannot run. Raises InputError.

    Any number of ranks runs on a CPU. dtype: as in a request.
    """
    import torch

    cuda = torch.cuda.is_available()
    check_kernel_on(placement.kernel, "cuda" if cuda else "cpu", dtype or ("bf16" if cuda else "fp32"))

    ranks = ranks_of_this_machine() or placement.ranks
    there = torch.cuda.device_count()
    if torch.cuda.is_available() and ranks > there:
        raise InputError(f"{ranks} ranks need a GPU each, and this machine has {there}: use at most {there}")


def run(jobs: list[Job], spec: ModelSpec, placement: Placement, report: Report, *, overwrite: bool) -> None:
    """Make the videos of `jobs`. Raises RankError where a rank that was started here fails."""
    if ranks_of_torchrun():
        from paradit.engine.worker import Assignment, make_as_rank, threads_per_rank

        local_ranks = ranks_of_this_machine() or placement.ranks
        assignment = Assignment(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            placement=placement,
            init_method="env://",
            jobs=jobs,
            spec=spec,
            overwrite=overwrite,
            threads=threads_per_rank(local_ranks),
        )
        make_as_rank(assignment, report)
    elif placement.ranks == 1:
        from paradit.engine.make import make_videos

        make_videos(jobs, spec, placement, report, overwrite=overwrite)
    else:
        from paradit.engine.driver import drive

        drive(jobs, spec, placement, report, overwrite=overwrite)
