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
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

from paradit.config.methods.base import method_of
from paradit.config.methods.blocks import BlocksRequest
from paradit.config.placement import Placement
from paradit.models.spec import ModelSpec
from paradit.planner.costs import ITEMSIZE
from paradit.planner.events import Compute, Message, Played, Step, Wait, play
from paradit.planner.pipeline_team import DONE, Team
from paradit.planner.stage_step import Kind, StageSeconds, StageSteps, kind_of
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import (
    StageGrid,
    in_flight,
    split_layers,
)

if TYPE_CHECKING:
    from paradit.planner.hardware import Cluster

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


@dataclass(frozen=True, kw_only=True)
class LongVideo:
    """A resolved request in blocks, on the ranks of a placement; every replica makes one such video."""

    cluster: Cluster
    spec: ModelSpec
    request: BlocksRequest
    placement: Placement
    dtype: str
    decode: float
    """Seconds that all frames take to decode."""
    known: dict[tuple[tuple[int, ...], ...], StageSteps] = field(default_factory=dict, repr=False)
    """What is known of the ranks that share tokens: placements that differ otherwise have it in common."""

    @cached_property
    def queue(self) -> BlockQueue:
        return self.request.queue(self.spec)

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

    @property
    def leader_decodes(self) -> bool:
        return set(self.placement.decode_ranks) == {self.placement.denoise_ranks[0]}

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

    def decode_seconds(self, queue: BlockQueue, block: int) -> float:
        """Of a block's frames."""
        assert self.queue.num_frames
        return self.decode * queue.frames_of(block) / self.queue.num_frames

    @cached_property
    def grid(self) -> StageGrid:
        """Where the ranks that denoise stand."""
        return method_of(self.request).grid(self.placement, self.request, self.spec)

    @cached_property
    def split(self) -> list[range]:
        """The layers of each stage, taken to be alike."""
        return split_layers([1.0] * self.spec.transformers[0].num_layers, self.grid.num_stages)

    @cached_property
    def steps(self) -> StageSteps:
        """What block-steps take on the ranks that share tokens, of all replicas."""
        ranks, size = self.placement.denoise_ranks, self.placement.replica_ranks
        teams = tuple(
            tuple(first + ranks[place] for place in places)
            for first in range(0, self.placement.ranks, size)
            for places in self.grid.groups()
        )
        if teams not in self.known:
            self.known[teams] = StageSteps(self.cluster, self.spec, self.dtype, teams, self.tokens)
        return self.known[teams]

    def step_seconds(self, stage: int, kind: Kind) -> StageSeconds:
        """A block-step of one branch in one stage's layers."""
        return self.steps.seconds(kind, len(self.split[stage]))

    @cached_property
    def tokens(self) -> int:
        """Of a latent frame."""
        return self.spec.tokens(1, self.request.height, self.request.width)

    @cached_property
    def branches(self) -> int:
        """How many each rank computes, one after the other."""
        return self.spec.num_branches(self.request.guidance_scale) // self.grid.cfg_degree

    @property
    def values_of_token(self) -> int:
        """Of latents, or predictions."""
        _, height, width = self.spec.transformers[0].patch_size
        return self.spec.vae.z_dim * height * width

    def block_message(self, first: int, frames: int) -> Message:
        """A finished block's latents, from the leader of the replica that begins at a rank to its decoder."""
        placement = self.placement
        ranks = first + placement.denoise_ranks[0], first + placement.decode_ranks[0]
        size = float(frames * self.tokens * self.values_of_token * ITEMSIZE["fp32"])
        return self.message("latents", ranks, [[0.0, size], [0.0, 0.0]])

    def message(self, name: str, ranks: tuple[int, ...], sent: list[list[float]]) -> Message:
        """Bytes from the i-th to the j-th of the cluster's ranks."""
        busy, latency = self.cluster.transfer(ranks, sent)
        return Message(name, ranks, busy, latency, sent)


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
