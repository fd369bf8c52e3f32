"""Whether videos fit into memory, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from paradit.config.placement import Placement
from paradit.engine.job import Job
from paradit.launched import launched
from paradit.models.spec import ModelSpec


def admit(
    jobs: Iterable[Job],
    spec: ModelSpec,
    placement: Placement,
    warn: Callable[[str], None],
    *,
    known: tuple[str, ...] | None = None,
) -> None:
    """Warn of videos that may be too much, and refuse what surely is. Raises InputError.

    known: as for `room.check_memory`.
    """
    # Imports torch, to know the device: after all other checks, and before weights are downloaded.
    from paradit.room import check_memory

    here = launched()
    local_ranks = here.local_ranks if here else None
    warnings = [check_memory(spec, job.request, placement, local_ranks, known=known) for job in jobs]
    for warning in dict.fromkeys(warnings):
        if warning:
            warn(warning)
