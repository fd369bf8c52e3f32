"""Replicas: groups of ranks that each make videos of their own, as if the others were not there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from paradit.config.placement import Placement
from paradit.distributed.world import World
from paradit.engine.events import Finished, MemoryUsed
from paradit.engine.job import Job
from paradit.memory import peak_memory_bytes
from paradit.progress import Emit, Event, Progress, renaming


@dataclass(frozen=True, kw_only=True)
class Replica:
    """The replica that this rank is in, and what it is to do."""

    everyone: World
    whole: Placement
    jobs: list[Job]
    """Every so-many-th one, maybe none."""
    placement: Placement
    world: World | None
    """Of its own ranks; None where it is one process."""
    report: Progress
    emit: Emit
    """Tells of the whole run."""

    def tell_memory(self) -> None:
        """Each rank's peak memory, told by the first; ranks of all replicas call it, at the end."""
        device = self.everyone.device
        mine = torch.tensor([peak_memory_bytes(device)], device=device)
        memory = [int(one) for one in self.everyone.transport().all_gather(mine)]
        if self.everyone.rank == 0:
            stages = [self.whole.stages_of(rank) for rank in range(self.whole.ranks)]
            self.emit(MemoryUsed(by_rank=memory, stages=stages))


def _of_replica(emit: Emit, replica: int) -> Emit:
    """What tells of one replica: stages have its number in their names."""

    def emit_own(event: Event) -> None:
        if isinstance(event, Finished):
            # What its own ranks needed so far says nothing of the run's: that is told at the end.
            own = ("peak_memory_bytes", "peak_memory_bytes_by_rank")
            result = {name: value for name, value in event.result.items() if name not in own}
            event = replace(event, result=result)
        emit(event)

    return renaming(emit_own, lambda stage: f"{stage} in replica {replica}")


def replica_of(world: World, placement: Placement, jobs: list[Job], report: Progress) -> Replica:
    """This rank's replica. Every rank calls it, with the same placement and jobs."""
    size, number = placement.replica_ranks, world.rank // placement.replica_ranks
    # Groups are made by all ranks, in the same order.
    parts = [
        world.part(range(first, first + size)) if size > 1 else None
        for first in range(0, placement.ranks, size)
    ]
    return Replica(
        everyone=world,
        whole=placement,
        jobs=jobs[number :: placement.replicas],
        placement=placement.replica,
        world=parts[number],
        report=Progress(_of_replica(report.emit, number)),
        emit=report.emit,
    )
