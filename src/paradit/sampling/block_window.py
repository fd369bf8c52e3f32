"""Where the tokens of a block-step are: in its window, and on the ranks that share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from paradit.attention.base import Attend, Kernel, Layout
from paradit.attention.rope import Rope
from paradit.attention.window import Kept, Neighbour, windowed, windowed_over
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares
from paradit.distributed.transport import Transport
from paradit.models.protocol import Transformer
from paradit.scheduling.block_queue import BlockStep


@dataclass(frozen=True)
class Sharing:
    """Who shares a window's tokens, as one of them sees it."""

    transport: Transport | None = None
    """None: nobody; this rank has all."""
    place: int = 0

    @property
    def sharers(self) -> int:
        return self.transport.num_ranks if self.transport else 1

    def heads(self, num_heads: int) -> range:
        """Those that this rank works on, whatever the number of tokens."""
        box = Shares.equal(0, num_heads, self.sharers).heads_of(self.place)
        return range(box.first_head, box.last_head)


class Window:
    """Of the steps whose blocks have the same frames and neighbours. Positions begin at its first frame."""

    def __init__(
        self, transformer: Transformer, step: BlockStep, size: tuple[int, int], sharing: Sharing
    ) -> None:
        whole: Rope = transformer.layout((step.window_frames, *size)).rope
        self.tokens = len(whole.positions) // step.window_frames
        """Of a latent frame."""
        frames_before = step.left.frames - step.left.computed
        start, count = frames_before * self.tokens, step.computed_frames * self.tokens
        self.layout = replace(
            transformer.layout((step.computed_frames, *size)), rope=whole.shard(start, start + count)
        )
        """Of the tokens that are computed."""
        self.left = whole.shard(0, start)
        """Where the tokens are whose keys are read, before those that are computed."""
        self.right = whole.shard(start + count, len(whole.positions))
        """And after them."""
        own = step.left.computed * self.tokens
        self.own = range(own, own + step.frames * self.tokens)
        """The block's own, among the tokens that are computed."""
        self.own_layout = transformer.layout((step.frames, *size))

        self._sharing, self._num_heads = sharing, transformer.num_heads
        boxes = map(self._shares(0).tokens_of, range(sharing.sharers))
        self.shares = [range(box.start, box.stop) for box in boxes]
        """The computed tokens that each sharer has."""
        self._exchange = cache(self._new_exchange)

    @property
    def mine(self) -> range:
        """This rank's tokens."""
        return self.shares[self._sharing.place]

    @property
    def my_layout(self) -> Layout:
        """Of this rank's tokens."""
        return replace(self.layout, rope=self.layout.rope.shard(self.mine.start, self.mine.stop))

    def mine_of(self, timestep: Tensor) -> Tensor:
        """[B], or this rank's part of [B, S], where each token has its own."""
        return timestep[:, self.mine.start : self.mine.stop] if timestep.ndim == 2 else timestep

    def own_of(self, place: int) -> range:
        """The block's own tokens that a sharer has; it may have none."""
        share = self.shares[place]
        start = max(self.own.start, share.start)
        return range(start, max(start, min(self.own.stop, share.stop)))

    def attend(
        self, kernel: Kernel, neighbours: Sequence[Neighbour], keep: Sequence[Kept], num_replicated: int
    ) -> Attend:
        """Attention of the window's tokens; num_replicated: of those that all sharers hold besides."""
        if self._sharing.transport is None:
            return windowed(kernel, neighbours, keep)
        exchange = self._exchange(num_replicated)
        return windowed_over(exchange, self.layout.rope, kernel, neighbours, keep)

    def _shares(self, num_replicated: int) -> Shares:
        num_tokens, num_ranks = len(self.layout.rope.positions), self._sharing.sharers
        return Shares.equal(num_tokens, self._num_heads, num_ranks, num_replicated)

    def _new_exchange(self, num_replicated: int) -> UlyssesExchange:
        assert self._sharing.transport is not None
        return UlyssesExchange(self._shares(num_replicated), self._sharing.transport, whole_heads=True)
