"""A long video in blocks (DualParal), played: `scheduling.layer_pipeline`'s programs over devices and links.

As in `sampling.block_pipeline`: a block-step's hidden states travel to the next stage, those of each guidance
branch by themselves; ranks are ready for two messages ahead; predictions come back to the first rank, which
decodes a finished block before it goes on, unless another rank decodes. Ranks that share a stage's tokens are
in step with each other, so the first of them speaks for all; what they exchange is known beforehand
(`planner.stage_step`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from paradit.planner.events import Compute, Played, Step, Wait, play
from paradit.planner.pipeline_team import DONE, Team
from paradit.planner.pipeline_video import PipelineVideo
from paradit.planner.stage_step import Kind, kind_of
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import (
    in_flight,
)

SETTLED, MEASURED = 3, 4
"""Blocks that leave a full queue until each takes as long as the one before; and so many after them that tell
how long that is. Every further one takes as long."""
STEADY = 1e-4
"""By which part the later ones of these may take longer or less long; else more blocks are played."""


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """What came of a video, in seconds from when its texts are there."""

    seconds: float
    """Until the last frames, decoded."""
    denoised: float
    """Until the last block's latents."""
    first: float
    """Until the first block's."""
    computing: tuple[float, ...]
    """Of each rank."""


class LongVideo(PipelineVideo):
    """A long video whose run is played; every replica makes one such video."""

    def run(self) -> LongRun:
        """Played as far as is needed to know the rest."""
        queue = self.queue
        assert queue.num_blocks
        # The first rank is ahead of what it collects by so many rounds, and knows of the end before.
        ahead = -(-in_flight(self.grid.num_stages) // queue.num_steps)
        settled = SETTLED + ahead
        while True:
            last = settled + MEASURED
            more = max(0, queue.num_blocks - (queue.num_steps + last + ahead + 1))
            played = self.played(more)
            done = [use.end for use in played.uses if use.name.startswith(DONE)]
            done = done[: queue.num_blocks - more]  # of the first replica
            steady, each = _pace(done[last - MEASURED : last + 1]) if more else (True, 0.0)
            if steady:
                break
            settled *= 2
        if self.leader_decodes:
            seconds = played.ends[self.placement.denoise_ranks[0]] + more * each
        else:
            decoder = self.placement.decode_ranks[0]
            came = [sent.end for sent in played.sent if sent.message.ranks[1:] == (decoder,)]
            seconds = self._decoded(_with_more(came, last, more, each))
        done = _with_more(done, last, more, each)
        return LongRun(seconds=seconds, denoised=done[-1], first=done[0], computing=self._computing())

    def _decoded(self, came: list[float]) -> float:
        """When a rank that only decodes has decoded blocks that come then."""
        free = 0.0
        for block, there in enumerate(came):
            free = max(free, there) + self.decode_seconds(self.queue, block)
        return free

    @property
    def least_seconds(self) -> float:
        """That it takes at least: what the stage that has most to do is busy.

        Of exchanges only the usual ones count here, which are most.
        """
        kinds = _kinds(self.queue)
        (usual, times), *_ = kinds.most_common(1)

        def busy(layers: int) -> float:
            computing = sum(n * max(self.steps.computing(kind, layers)) for kind, n in kinds.items())
            return self.branches * (computing + times * self.steps.seconds(usual, layers).exposed)

        first, most = (busy(layers) for layers in (len(self.split[0]), max(map(len, self.split))))
        return max(most, first + self.decode if self.leader_decodes else 0.0)

    @property
    def longest_step(self) -> float:
        """Of all branches that a rank computes, of most frames, in the stage that has most layers."""
        kind = max(_kinds(self.queue), key=lambda kind: (sum(kind[:3]), kind[3]))
        return self.branches * self.steps.seconds(kind, max(map(len, self.split))).seconds

    def _computing(self) -> tuple[float, ...]:
        """Seconds of each rank over the whole video."""
        placement, grid = self.placement, self.grid
        found = [0.0] * placement.replica_ranks
        for kind, number in _kinds(self.queue).items():
            each = self.steps.computing(kind, 1)
            for place, rank in enumerate(placement.denoise_ranks):
                layers = len(self.split[grid.stage(place)])
                found[rank] += number * self.branches * layers * each[grid.place(place)]
        found[placement.decode_ranks[0]] += self.decode
        return tuple(found) * placement.replicas

    def played(self, fewer: int = 0) -> Played:
        """The run, of so many blocks fewer."""
        assert self.queue.num_frames
        queue = replace(self.queue, num_frames=self.queue.num_frames - fewer * self.queue.block_frames)
        return play([self._program(rank, queue) for rank in range(self.placement.ranks)])

    def _program(self, rank: int, queue: BlockQueue) -> Iterator[Step]:
        replica, within = divmod(rank, self.placement.replica_ranks)
        first, ranks = replica * self.placement.replica_ranks, self.placement.denoise_ranks
        if within in ranks:
            place = ranks.index(within)
            if self.grid.place(place) == 0:
                yield from Team(self, queue, first, place).program()
        elif within in self.placement.decode_ranks:
            assert queue.num_blocks
            for block in range(queue.num_blocks):
                yield Wait(("block", first, block))
                yield Compute(f"decode block {block}", self.decode_seconds(queue, block))


def _pace(ends: Sequence[float]) -> tuple[bool, float]:
    """Whether one comes as steadily as the other, and how long after it."""
    half = len(ends) // 2
    early, late = ends[half] - ends[0], ends[-1] - ends[half]
    return abs(late - early) <= STEADY * late, (early + late) / (len(ends) - 1)


def _with_more(ends: list[float], last: int, more: int, each: float) -> list[float]:
    """The same with so many more after the last steady one."""
    between = [ends[last] + number * each for number in range(1, more + 1)]
    return [*ends[: last + 1], *between, *(end + more * each for end in ends[last + 1 :])]


@cache
def _kinds(queue: BlockQueue) -> Counter[Kind]:
    """How many block-steps of each kind a video has."""
    return Counter(map(kind_of, queue.steps()))
