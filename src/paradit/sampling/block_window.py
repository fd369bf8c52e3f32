"""Tokens of a frame block and of its context in one denoising step, and their division among ranks.

The context of a frame block is the neighbouring frames that it attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from paradit.attention.base import Attend, Kernel, Layout
from paradit.attention.rope import Rope
from paradit.attention.window import Kept, Neighbour, windowed, windowed_over
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares
from paradit.distributed.transport import Transport
from paradit.models.protocol import Transformer
from paradit.scheduling.block_queue import BlockQueue, BlockStep


@dataclass(frozen=True)
class Sharing:
    """Division of a frame block's tokens among ranks, from the point of view of one of these ranks."""

    transport: Transport | None = None
    """Connection among the ranks that share the tokens; None: this rank has all tokens."""
    place: int = 0

    @property
    def sharers(self) -> int:
        return self.transport.num_ranks if self.transport else 1

    def heads(self, num_heads: int) -> range:
        """Return the range of attention heads that this rank computes, which all frame blocks have in common.

        num_heads: number of attention heads of the model.
        """
        box = Shares.equal(0, num_heads, self.sharers).heads_of(self.place)
        return range(box.first_head, box.last_head)


class Window:
    """A frame block and the context frames that it attends to, as ranges of tokens and their RoPE rotations.

    Context frames lie before and after the frame block. Steps with the same numbers of frames use the same
    window. Token positions are counted from the window's first frame.
    """

    def __init__(
        self, transformer: Transformer, step: BlockStep, size: tuple[int, int], sharing: Sharing
    ) -> None:
        whole: Rope = transformer.layout((step.window_frames, *size)).rope
        self.tokens = len(whole.positions) // step.window_frames
        """Number of tokens per latent frame."""
        frames_before = step.left.frames - step.left.computed
        start, count = frames_before * self.tokens, step.computed_frames * self.tokens
        # Positions are those in the whole window, also if a neighbour's frames are read from a cache.
        self.layout = replace(
            transformer.layout((step.computed_frames, *size)), rope=whole.shard(start, start + count)
        )
        """Layout (positions and rotations) of the tokens that are computed, not read from a cache."""
        self.left = whole.shard(0, start)
        """RoPE rotations of the tokens of the frames before the block, if the keys and values of these tokens
        are read from a cache; empty if they are computed."""
        self.right = whole.shard(start + count, len(whole.positions))
        """RoPE rotations of the tokens of the frames after the block, if the keys and values of these tokens
        are read from a cache; empty if they are computed."""
        own = step.left.computed * self.tokens
        self.own = range(own, own + step.frames * self.tokens)
        """Range of the frame block's own tokens among the tokens that are computed, some of which may be
        context."""
        # Its own rotations would be further tables in memory: these are views.
        self.own_layout = replace(
            transformer.layout((step.frames, *size)),
            rope=self.layout.rope.shard(self.own.start, self.own.stop),
        )

        self._sharing, self._num_heads = sharing, transformer.num_heads
        boxes = map(self._shares(0).tokens_of, range(sharing.sharers))
        self.shares = [range(box.start, box.stop) for box in boxes]
        """For each of the ranks that share the tokens of this window (frame block and context frames), the
        range of tokens that the rank holds. The ranges count only tokens that are computed, not those that
        are read from a cache."""
        # With joint attention, each prompt may have another number of text tokens, and needs an exchange for
        # it.
        self._exchange = cache(self._new_exchange)

    @property
    def mine(self) -> range:
        """Range of this rank's tokens among the tokens that are computed, not read from a cache."""
        return self.shares[self._sharing.place]

    @property
    def my_layout(self) -> Layout:
        """Layout (positions and rotations) of the tokens that this rank holds."""
        return self.layout.shard(self.mine.start, self.mine.stop)

    def own_of(self, place: int) -> range:
        """Return which of the frame block's own tokens a rank holds, as a range of indices.

        Tokens of context frames are not included, so the range may be empty. The indices count the tokens
        that this step computes, not those whose keys and values are read from a cache. place: the rank's
        index among those that share the tokens.
        """
        share = self.shares[place]
        start = max(self.own.start, share.start)
        return range(start, max(start, min(self.own.stop, share.stop)))

    def attend(
        self, kernel: Kernel, neighbours: Sequence[Neighbour], keep: Sequence[Kept], num_replicated: int
    ) -> Attend:
        """Return the attention function for the tokens of the window: a frame block with its context frames.

        neighbours: tokens of neighbouring frame blocks, whose keys and values are read from a cache. keep:
        ranges of tokens whose keys and values are stored in a cache. num_replicated: number of further
        tokens, such as the text's, of which every rank holds a copy.
        """
        if self._sharing.transport is None:
            return windowed(kernel, neighbours, keep)
        exchange = self._exchange(num_replicated)
        return windowed_over(exchange, self.layout.rope, kernel, neighbours, keep)

    def _shares(self, num_replicated: int) -> Shares:
        num_tokens, num_ranks = len(self.layout.rope.positions), self._sharing.sharers
        return Shares.equal(num_tokens, self._num_heads, num_ranks, num_replicated)

    def _new_exchange(self, num_replicated: int) -> UlyssesExchange:
        assert self._sharing.transport is not None
        # Whole heads, because keys and values are cached by head.
        return UlyssesExchange(self._shares(num_replicated), self._sharing.transport, whole_heads=True)


def timestep_of(step: BlockStep, queue: BlockQueue, timesteps: Tensor) -> Tensor:
    """Return the timestep of the frames in a block-step: one for all, or a tensor with one for each frame.

    timesteps: the timestep of each denoising step.
    """
    if not queue.true_timesteps:
        return timesteps[step.step]
    # Denoised frames have the timestep 0.
    return torch.cat([timesteps, timesteps.new_zeros(1)])[queue.levels_of(step)]
