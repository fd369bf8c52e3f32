"""Replicas: groups of ranks that make different videos, independently of each other."""

from __future__ import annotations

from dataclasses import replace

import torch

from paradit.config.placement import Placement
from paradit.device_memory import peak_memory_bytes
from paradit.distributed.world import World
from paradit.engine.events import Finished, MemoryUsed
from paradit.progress import Emit, Event, renaming


def own_world(world: World, size: int) -> World | None:
    """Return the process group of this rank's replica; None if each replica is one process.

    size: number of ranks in each replica. Every rank of all replicas calls it.
    """
    # All ranks must create all process groups, in the same order.
    parts = [world.part(range(first, first + size)) for first in range(0, world.size, size) if size > 1]
    return next((part for part in parts if part is not None), None)


def tell_memory(world: World, placement: Placement, emit: Emit) -> None:
    """Gather the peak memory of all ranks, and report it from the first rank.

    All ranks call it together, at the end of the run.
    """
    memory = gathered_memory(world, world.device)
    if world.rank == 0:
        stages = [placement.stages_of(rank) for rank in range(placement.ranks)]
        emit(MemoryUsed(by_rank=memory, stages=stages))


def gathered_memory(world: World | None, device: torch.device) -> list[int]:
    """Return the peak memory of every rank in bytes; all ranks of `world` call it together.

    world: process group of the ranks; None for one process. device: this rank's device.
    """
    mine = torch.tensor([peak_memory_bytes(device)], device=device)
    everyone = world.transport().all_gather(mine) if world else [mine]
    return [int(one) for one in everyone]


def of_replica(emit: Emit, replica: int) -> Emit:
    """Return a function that passes events of one replica (group of ranks) on to `emit`, slightly changed.

    The names of stages get the replica's index. `Finished` events lose the peak memory, because the memory of
    all replicas is reported at the end.
    """

    def emit_own(event: Event) -> None:
        if isinstance(event, Finished):
            # One replica's memory is not the run's, which is reported at the end.
            own = ("peak_memory_bytes", "peak_memory_bytes_by_rank")
            result = {name: value for name, value in event.result.items() if name not in own}
            event = replace(event, result=result)
        emit(event)

    return renaming(emit_own, lambda stage: f"{stage} in replica {replica}")
