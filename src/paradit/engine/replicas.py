"""Replicas: groups of ranks that each make videos of their own, as if the others were not there."""

from __future__ import annotations

from dataclasses import replace

import torch

from paradit.config.placement import Placement
from paradit.distributed.world import World
from paradit.engine.events import Finished, MemoryUsed
from paradit.memory import peak_memory_bytes
from paradit.progress import Emit, Event, renaming


def own_world(world: World, size: int) -> World | None:
    """The ranks of this rank's replica, of `size` each; None if it is one process. Every rank calls it."""
    # Groups are made by all ranks, in the same order.
    parts = [world.part(range(first, first + size)) for first in range(0, world.size, size) if size > 1]
    return next((part for part in parts if part is not None), None)


def tell_memory(world: World, placement: Placement, emit: Emit) -> None:
    """Each rank's peak memory, told by the first; ranks of all replicas call it, at the end."""
    mine = torch.tensor([peak_memory_bytes(world.device)], device=world.device)
    memory = [int(one) for one in world.transport().all_gather(mine)]
    if world.rank == 0:
        stages = [placement.stages_of(rank) for rank in range(placement.ranks)]
        emit(MemoryUsed(by_rank=memory, stages=stages))


def of_replica(emit: Emit, replica: int) -> Emit:
    """What tells of one replica: stages have its number in their names."""

    def emit_own(event: Event) -> None:
        if isinstance(event, Finished):
            # What its own ranks needed so far says nothing of the run's: that is told at the end.
            own = ("peak_memory_bytes", "peak_memory_bytes_by_rank")
            result = {name: value for name, value in event.result.items() if name not in own}
            event = replace(event, result=result)
        emit(event)

    return renaming(emit_own, lambda stage: f"{stage} in replica {replica}")
