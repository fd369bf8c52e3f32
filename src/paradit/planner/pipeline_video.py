"""A long video in blocks on the ranks of a layer pipeline: what follows from it without being played."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from paradit.config.methods.base import method_of
from paradit.config.methods.blocks import BlocksRequest
from paradit.config.placement import Placement
from paradit.models.spec import ModelSpec
from paradit.planner.costs import ITEMSIZE
from paradit.planner.events import Message
from paradit.planner.hardware import Cluster
from paradit.planner.stage_step import Kind, StageSeconds, StageSteps
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import StageGrid, split_layers


@dataclass(frozen=True, kw_only=True)
class PipelineVideo:
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

    @property
    def leader_decodes(self) -> bool:
        return set(self.placement.decode_ranks) == {self.placement.denoise_ranks[0]}

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
