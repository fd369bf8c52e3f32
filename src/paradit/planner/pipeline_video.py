"""Description of a long video on a layer pipeline: all that is known without simulating the pipeline."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from paradit.attention.patterns import FULL
from paradit.config.methods.blocks import BlocksRequest
from paradit.config.methods.method import method_of
from paradit.config.placement import Placement
from paradit.models.spec import ModelSpec
from paradit.planner.costs import ITEMSIZE
from paradit.planner.discrete_events import Message
from paradit.planner.hardware import Cluster
from paradit.planner.slice_step import Kind, Layers, SliceSeconds, SliceSteps
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import PipelineGrid


@dataclass(frozen=True, kw_only=True)
class PipelineVideo:
    """Long video that a layer pipeline makes in frame blocks, described without simulating the pipeline.

    If there are data parallel replicas (groups of ranks that make different videos), each makes one.
    """

    cluster: Cluster
    spec: ModelSpec
    request: BlocksRequest
    placement: Placement
    dtype: str
    decode: float
    """Seconds to decode all frames of the video."""
    known: dict[tuple[tuple[int, ...], ...], SliceSteps] = field(default_factory=dict, repr=False)
    """Cache of step costs: mapping from groups of ranks that share tokens to the costs of frame blocks' steps
    on these groups. Plans with the same groups use the same entry."""

    @cached_property
    def queue(self) -> BlockQueue:
        return self.request.queue(self.spec)

    @property
    def leader_decodes(self) -> bool:
        return set(self.placement.decode_ranks) == {self.placement.denoise_ranks[0]}

    def decode_seconds(self, queue: BlockQueue, block: int) -> float:
        """Return the seconds to decode the frames of one frame block."""
        assert self.queue.num_frames
        return self.decode * queue.frames_of(block) / self.queue.num_frames

    @cached_property
    def grid(self) -> PipelineGrid:
        """Grid of the denoise ranks: by layer slice, guidance branch and share of the tokens."""
        return method_of(self.request).grid(self.placement, self.request, self.spec)

    @cached_property
    def slices(self) -> list[Layers]:
        """Layers of each layer slice: how many it has with each pattern."""
        pattern = self.spec.transformers[0].pattern
        split = method_of(self.request).layers(self.placement, self.request, self.spec)
        return [tuple(Counter(pattern(layer) or FULL for layer in layers).items()) for layers in split]

    @cached_property
    def steps(self) -> SliceSteps:
        """Costs of one step of a frame block, on each group of ranks that share tokens, in all replicas."""
        ranks, size = self.placement.denoise_ranks, self.placement.replica_ranks
        groups = tuple(
            tuple(first + ranks[place] for place in places)
            for first in range(0, self.placement.ranks, size)
            for places in self.grid.groups()
        )
        if groups not in self.known:
            self.known[groups] = SliceSteps(self.cluster, self.spec, self.dtype, groups, self.tokens)
        return self.known[groups]

    def step_seconds(self, layer_slice: int, kind: Kind) -> SliceSeconds:
        """Return the seconds of one step of a frame block in one layer slice, for one guidance branch."""
        return self.steps.seconds(kind, self.slices[layer_slice])

    @cached_property
    def tokens(self) -> int:
        """Number of tokens in a latent frame."""
        return self.spec.tokens(1, self.request.height, self.request.width)

    @cached_property
    def branches(self) -> tuple[int, ...]:
        """Number of guidance branches that each rank computes in each denoising step, one after the other."""
        steps, branches = self.request.evaluations(self.spec), self.request.branches(self.spec)
        return tuple(
            number // self.grid.cfg_degree
            for times, number in zip(steps, branches, strict=True)
            for _ in range(times)
        )

    @property
    def values_of_token(self) -> int:
        """Number of values per token in the latents, and in the predictions."""
        _, height, width = self.spec.transformers[0].patch_size
        return self.spec.vae.z_dim * height * width

    def block_message(self, first: int, frames: int) -> Message:
        """Return the message of a finished block's latents from the first denoise rank to the decode rank.

        first: first rank, in the cluster, of the replica. frames: number of the block's latent frames.
        """
        placement = self.placement
        ranks = first + placement.denoise_ranks[0], first + placement.decode_ranks[0]
        # Latents are kept in fp32, whatever the dtype of the model.
        size = float(frames * self.tokens * self.values_of_token * ITEMSIZE["fp32"])
        return self.message("latents", ranks, [[0.0, size], [0.0, 0.0]])

    def message(self, name: str, ranks: tuple[int, ...], sent: list[list[float]]) -> Message:
        """Return a simulated exchange in which the i-th of `ranks` sends `sent[i][j]` bytes to the j-th."""
        busy, latency = self.cluster.transfer(ranks, sent)
        return Message(name, ranks, busy, latency, sent)
