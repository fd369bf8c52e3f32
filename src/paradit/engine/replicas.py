"""Replicas: groups of ranks that each make videos of their own, as if the others were not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from paradit.config.placement import Placement
from paradit.distributed.world import World
from paradit.engine.job import Job, Report
from paradit.memory import peak_memory_bytes


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
    report: ReplicaReport

    def tell_memory(self) -> None:
        """Each rank's peak memory, told by the first; ranks of all replicas call it, at the end."""
        device = self.everyone.device
        mine = torch.tensor([peak_memory_bytes(device)], device=device)
        memory = [int(one) for one in self.everyone.transport().all_gather(mine)]
        if self.everyone.rank == 0:
            self.report.report.memory(
                memory, [self.whole.stages_of(rank) for rank in range(self.whole.ranks)]
            )


class ReplicaReport(Report):
    """Tells a run's report of one replica: stages have the replica's number in their names."""

    def __init__(self, report: Report, replica: int) -> None:
        super().__init__()
        self.report, self._replica = report, replica

    def started(self, name: str, total: int) -> None:
        self.report.started(self._named(name), total)

    def stepped(self, name: str, done: int) -> None:
        self.report.stepped(self._named(name), done)

    def finished(self, name: str, seconds: float) -> None:
        self.report.finished(self._named(name), seconds)

    def request(self, index: int, count: int, prompt: str) -> None:
        self.report.request(index, count, prompt)

    def result(self, result: dict[str, Any]) -> None:
        # What its own ranks needed so far says nothing of the run's: that is told at the end.
        own = ("peak_memory_bytes", "peak_memory_bytes_by_rank")
        self.report.result({name: value for name, value in result.items() if name not in own})

    def failed(self, index: int, count: int, message: str) -> None:
        self.report.failed(index, count, message)

    def growing(self, path: str) -> None:
        self.report.growing(path)

    def wrote(self, num_frames: int) -> None:
        self.report.wrote(num_frames)

    def queue(self, block: int, num_blocks: int | None, levels: tuple[int, int], steps: int) -> None:
        self.report.queue(block, num_blocks, levels, steps)

    def doing(self, stage: str, index: int) -> None:
        self.report.doing(stage, index)

    def warn(self, message: str) -> None:
        self.report.warn(message)

    def _named(self, stage: str) -> str:
        return f"{stage} in replica {self._replica}"


def replica_of(world: World, placement: Placement, jobs: list[Job], report: Report) -> Replica:
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
        report=ReplicaReport(report, number),
    )
