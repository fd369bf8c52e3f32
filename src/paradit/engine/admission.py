"""Checks, before any weights are loaded, that LoRAs fit the model, and that videos fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from paradit.config.placement import Placement
from paradit.engine.job import Job
from paradit.launcher_environment import launched
from paradit.models.spec import ModelSpec


def admit(
    jobs: Iterable[Job],
    spec: ModelSpec,
    placement: Placement,
    warn: Callable[[str], None],
    *,
    known: tuple[str, ...] | None = None,
) -> None:
    """Warn of videos that may need too much memory, and refuse those that surely need too much.

    Before that, LoRAs that cannot be merged into the model are refused, and parts of them that are left out
    are warned of.

    known: names of the command-line options that warnings and errors may advise; None: all options of
    `paradit generate`. Raises InputError for a video or a LoRA that is refused.
    """
    # This imports torch to query the device, so it comes after all checks that need no torch.
    from paradit.memory_check import check_memory
    from paradit.models.common.loading import check_loras

    for line in check_loras(spec):
        warn(line)
    here = launched()
    local_ranks = here.local_ranks if here else None
    warnings = [check_memory(spec, job.request, placement, local_ranks, known=known) for job in jobs]
    for warning in dict.fromkeys(warnings):
        if warning:
            warn(warning)
