"""A long video in blocks (DualParal), played: `scheduling.layer_pipeline`'s programs over devices and links.

As in `sampling.block_pipeline`: a block-step's hidden states travel to the next rank, those of each guidance
branch by themselves; ranks are ready for two messages ahead; predictions come back to the first rank, which
decodes a finished block before it goes on, unless another rank decodes. Stages may have a rank for each
guidance branch; ranks that share tokens within a stage are not played.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from paradit.planner.costs import ITEMSIZE, block_seconds, replicated_rows
from paradit.planner.events import Compute, Message, Played, Post, Step, Wait, play
from paradit.requests import latent_shape
from paradit.scheduling.block_queue import BlockQueue, BlockStep, queue_of
from paradit.scheduling.layer_pipeline import Collect, StageGrid, program, split_layers

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec
    from paradit.placement import Placement
    from paradit.planner.hardware import Cluster
    from paradit.requests import Request

AHEAD = 2
"""How many messages a rank is ready for beyond the one that it waits for (`distributed.channel.Expected`)."""
PLAYED_BLOCKS = 4
"""Blocks beyond as many as there are steps and ranks: every further one takes as long as the last of them."""


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
    request: Request
    placement: Placement
    dtype: str
    decode: float
    """Seconds that all frames take to decode."""

    @cached_property
    def queue(self) -> BlockQueue:
        return queue_of(self.request, latent_shape(self.request, self.spec)[1])

    def run(self) -> LongRun:
        """Played as far as is needed to know the rest."""
        queue = self.queue
        assert queue.num_blocks
        few = queue.num_steps + self.grid.num_stages + PLAYED_BLOCKS
        more = max(0, queue.num_blocks - few)
        times = self._times(more)
        if more:
            pairs = zip(times, self._times(more + 1), strict=True)
            times = [last + more * (last - before) for last, before in pairs]
        seconds, denoised, first, *computing = times
        return LongRun(seconds=seconds, denoised=denoised, first=first, computing=tuple(computing))

    def _times(self, fewer: int) -> list[float]:
        """When all is done, all is denoised, and the first block is; and what each rank computes."""
        queue = self._shorter(fewer)
        assert queue.num_blocks
        played = self.played(fewer)
        done = {use.name: use.end for use in played.uses if use.name.startswith(_DONE)}
        return [
            played.seconds, done[f"{_DONE}{queue.num_blocks - 1}"], done[f"{_DONE}0"], *played.computing
        ]  # fmt: skip

    def played(self, fewer: int = 0) -> Played:
        """The run, of so many blocks fewer."""
        queue = self._shorter(fewer)
        return play([self._program(rank, queue) for rank in range(self.placement.ranks)])

    def _shorter(self, fewer: int) -> BlockQueue:
        assert self.queue.num_frames
        return replace(self.queue, num_frames=self.queue.num_frames - fewer * self.queue.block_frames)

    def _program(self, rank: int, queue: BlockQueue) -> Iterator[Step]:
        size = self.placement.replica_ranks
        replica, within = divmod(rank, size)
        ranks = self.placement.denoise_ranks
        if within in ranks:
            yield from _Stage(self, queue, replica * size, ranks.index(within)).program()
        elif within in self.placement.decode_ranks:
            assert queue.num_blocks
            for block in range(queue.num_blocks):
                yield Wait(("block", replica * size, block))
                yield Compute(f"decode block {block}", self.decode_seconds(queue, block))

    def decode_seconds(self, queue: BlockQueue, block: int) -> float:
        """Of a block's frames."""
        assert self.queue.num_frames
        return self.decode * queue.frames_of(block) / self.queue.num_frames

    @cached_property
    def grid(self) -> StageGrid:
        """Where the ranks that denoise stand; none share tokens."""
        grid = self.placement.stage_grid(self.request, self.spec)
        assert grid.sharers == 1, "exchanges within a stage are not played"
        return grid

    @cached_property
    def split(self) -> list[range]:
        """The layers of each stage, taken to be alike."""
        return split_layers([1.0] * self.spec.transformers[0].num_layers, self.grid.num_stages)

    def step_seconds(self, stage: int, step: BlockStep) -> float:
        """A block-step of one branch in one stage's layers."""
        key = stage, step.computed_frames, step.window_frames
        if key not in self._known:
            spec, layers = self.spec.transformers[0], len(self.split[stage])
            held = step.computed_frames * self.tokens
            costs = block_seconds(
                spec,
                self.cluster.device,
                held=held,
                tokens=step.window_frames * self.tokens,
                text=self.spec.text_length,
                batch=1,
                dtype=self.dtype,
            )
            attention = costs.attention((held + self.text_rows) * spec.num_attention_heads)
            self._known[key] = layers * (3 * costs.value + attention + costs.finish)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[int, int, int], float]:
        return {}

    @cached_property
    def tokens(self) -> int:
        """Of a latent frame."""
        assert self.request.height and self.request.width
        return self.spec.tokens(1, self.request.height, self.request.width)

    @cached_property
    def text_rows(self) -> int:
        """Of the text, which goes through the layers with the tokens, in a joint-attention model."""
        return replicated_rows(self.spec.transformers[0], self.spec.text_length)

    @cached_property
    def branches(self) -> int:
        """How many each rank computes, one after the other."""
        assert self.request.guidance_scale
        return self.spec.num_branches(self.request.guidance_scale) // self.grid.cfg_degree

    def message(self, name: str, sender: int, receiver: int, values: int, itemsize: int) -> Message:
        """So many values from one rank of the cluster to another."""
        sent = [[0.0, float(values * itemsize)], [0.0, 0.0]]
        busy, latency = self.cluster.transfer((sender, receiver), sent)
        return Message(name, (sender, receiver), busy, latency, sent)


_DONE = "latents of block "


class _Stage:
    """What one rank of a pipeline does."""

    def __init__(self, video: LongVideo, queue: BlockQueue, first: int, place: int) -> None:
        """first: the cluster's rank that the placement's rank 0 is. place: among those that denoise."""
        self._video, self._queue, self._place, self._pipe = video, queue, place, first
        self._ranks = [first + rank for rank in video.placement.denoise_ranks]
        self._grid = grid = video.grid
        self._stage, self._is_leader = grid.stage(place), place == 0
        self._is_last = self._stage == grid.num_stages - 1
        self._mates = range(1, grid.stage_ranks)
        self._senders = list(range(len(self._ranks) - grid.stage_ranks, len(self._ranks)))
        """Of predictions; the leader itself sends none."""
        self._steps = list(queue.steps())
        self._messages: dict[tuple[int, str, int], Message] = {}

    def program(self) -> Iterator[Step]:
        """In the order of `BlockPipeline.blocks`."""
        hops = len(self._steps) * self._video.branches
        if self._stage:
            yield from (self._hop(self._before, index) for index in range(min(AHEAD, hops)))
        if self._is_leader:
            for index in range(min(AHEAD, len(self._steps))):
                yield from self._predictions(index)
        computed = collected = 0
        for operation in program(self._queue, self._grid.num_stages, self._place):
            if isinstance(operation, Collect):
                yield from self._collect(operation.step, collected)
                collected += 1
                continue
            yield from self._share(computed)
            for branch in range(self._video.branches):
                yield from self._compute(operation.step, computed * self._video.branches + branch)
            if self._is_last and not self._is_leader:
                yield self._prediction(self._place, computed)
            computed += 1

    @property
    def _before(self) -> int:
        """The place that hands on to this one."""
        return self._place - self._grid.stage_ranks

    def _share(self, index: int) -> Iterator[Step]:
        """A block-step's latents, from the leader to the others of the first stage."""
        if self._stage == 0 and not self._is_leader:
            yield Wait(("latents", self._pipe, self._place, index))
        for mate in self._mates if self._is_leader else ():
            values = self._steps[index].computed_frames * self._video.tokens * self._values_of_token
            message = self._message(0, mate, "latents", values)
            yield Post(("latents", self._pipe, mate, index), replace(message, ranks=message.ranks[:1]))
            if index >= AHEAD:
                yield Wait(("latents", self._pipe, mate, index - AHEAD))

    def _compute(self, step: BlockStep, index: int) -> Iterator[Step]:
        hops = len(self._steps) * self._video.branches
        if self._stage:
            if index + AHEAD < hops:
                yield self._hop(self._before, index + AHEAD)
            yield Wait(("hop", self._pipe, self._before, index))
        yield Compute(f"block {step.block}, step {step.step}", self._video.step_seconds(self._stage, step))
        if not self._is_last:
            yield self._hop(self._place, index)
            if index >= AHEAD:  # `HOP_DEPTH` may be on their way
                yield Wait(("hop", self._pipe, self._place, index - AHEAD))

    def _collect(self, step: BlockStep, index: int) -> Iterator[Step]:
        if index + AHEAD < len(self._steps):
            yield from self._predictions(index + AHEAD)
        yield from (Wait(("prediction", self._pipe, sender, index)) for sender in self._senders if sender)
        if step.step < self._queue.num_steps - 1:
            return
        yield Compute(f"{_DONE}{step.block}", 0.0)
        video, placement = self._video, self._video.placement
        if set(placement.decode_ranks) == {placement.denoise_ranks[0]}:
            yield Compute(f"decode block {step.block}", video.decode_seconds(self._queue, step.block))
            return
        decoder = self._pipe + placement.decode_ranks[0]
        values = step.frames * video.tokens * self._values_of_token
        message = video.message("latents", self._ranks[0], decoder, values, ITEMSIZE["fp32"])
        yield Post(("block", self._pipe, step.block), replace(message, ranks=message.ranks[:1]))

    def _hop(self, place: int, index: int) -> Post:
        """Hidden states from one rank of the pipeline to that of the next stage; both post it."""
        tokens = self._steps[index // self._video.branches].computed_frames * self._video.tokens
        values = (tokens + self._video.text_rows) * self._video.spec.transformers[0].width
        message = self._message(place, place + self._grid.stage_ranks, "hidden states", values)
        return Post(("hop", self._pipe, place, index), message)

    def _predictions(self, index: int) -> Iterator[Post]:
        """From all that send one."""
        return (self._prediction(sender, index) for sender in self._senders if sender)

    def _prediction(self, sender: int, index: int) -> Post:
        """To the leader."""
        values = self._steps[index].frames * self._video.tokens * self._values_of_token
        message = self._message(sender, 0, "prediction", values)
        return Post(("prediction", self._pipe, sender, index), message)

    def _message(self, sender: int, receiver: int, name: str, values: int) -> Message:
        """From one place to another, in the model's dtype."""
        key = sender, f"{name} to {receiver}", values
        if key not in self._messages:
            ranks, itemsize = self._ranks, ITEMSIZE[self._video.dtype]
            self._messages[key] = self._video.message(name, ranks[sender], ranks[receiver], values, itemsize)
        return self._messages[key]

    @property
    def _values_of_token(self) -> int:
        """Of latents, or predictions."""
        _, height, width = self._video.spec.transformers[0].patch_size
        return self._video.spec.vae.z_dim * height * width
