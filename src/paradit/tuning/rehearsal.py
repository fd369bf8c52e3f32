"""Simulation ("rehearsal") of a transformer's forward with any form of attention, by measured times.

The simulation runs the real program, `through_blocks` with its attention and its exchange, so no schedule is
described twice. But its tensors hold no data (torch's device "meta"). Its blocks and its kernel only advance
a clock by the time that real ones were measured to take. Its messages share a link that has a latency and a
rate: Hockney's alpha-beta model (Parallel Computing 20, 1994). One rank is simulated; the others are taken to
be like it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from paradit.attention.base import Attend, Dealt, Layout, Projection, Site, Wait
from paradit.attention.join import join
from paradit.attention.local_attention import unattended
from paradit.attention.measured import MeasuredKernel
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.attention.rope import Rope
from paradit.distributed.mesh import Groups, Sharers
from paradit.distributed.shares import Shares
from paradit.distributed.timing import TIMES, Link, now
from paradit.distributed.transport import Transfer, Transport
from paradit.models.protocol import Block, T, Tokens
from paradit.parallel.run_blocks import run, run_interleaved, through_blocks, through_dealt_blocks


@dataclass(frozen=True)
class AttentionCost:
    """Measured time of what a transformer block computes before an attention, and the attention's input.

    Both are those of one rank, which holds a part of the tokens.
    """

    value: Tensor
    """Attention's input values, [B, S, H, D], of which only the shape and dtype matter."""
    projections: tuple[float, ...]
    """Seconds to compute v, k and q with RoPE; those of v include all computation since the previous
    attention."""
    pattern: Pattern | None = None
    """Which keys each query sees; None: all."""


@dataclass(frozen=True)
class BlockCost:
    """Measured times of the parts of a transformer block, except its attentions, on one rank's tokens."""

    attentions: tuple[AttentionCost, ...]
    finish: float
    """Seconds that a transformer block takes after its last attention."""


def measure_block(block: Block[T], tokens: T) -> BlockCost:
    """Measure the times of the parts of a transformer block, except its attentions, on this rank's tokens."""
    device = tokens.hidden_states.device
    rows = [_laps(block, tokens, device) for _ in range(TIMES + 1)][1:]  # the first one warms up
    *projections, finish = (min(times) for times in zip(*(laps for laps, _ in rows), strict=True))
    values = rows[0][1]
    each = len(projections) // len(values)
    return BlockCost(
        attentions=tuple(
            AttentionCost(value, tuple(projections[number * each : (number + 1) * each]), site.pattern)
            for number, (value, site) in enumerate(zip(values, block.sites, strict=True))
        ),
        finish=finish,
    )


def _laps(block: Block[T], tokens: T, device: torch.device) -> tuple[list[float], list[Tensor]]:
    """Return the seconds of each part of a transformer block, and the values that its attentions read.

    The parts are v, k and q of each attention, then what comes after the last one. The values hold no data.
    """
    laps: list[float] = []
    values: list[Tensor] = []
    last = now(device)

    def lap() -> None:
        nonlocal last
        moment = now(device)
        laps.append(moment - last)
        last = moment

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        attended = yield from unattended(lap)(site, projection, layout)
        values.append(torch.empty_like(attended, device="meta"))
        return attended

    run(block.run(tokens, attend))
    lap()
    return laps, values


def rehearse(
    choice: Choice,
    shares: Shares,
    rank: int,
    *,
    link: Link,
    streams: int,
    blocks: Sequence[BlockCost],
    kernel: MeasuredKernel,
) -> float:
    """Return the simulated seconds that transformer blocks take on one rank with a choice of attention form.

    choice: attention form, such as Ulysses, with its options; it must not need attention's log-sum-exp. rank:
    index of the simulated rank. blocks: measured times of the transformer blocks, in order. streams: number
    of forwards, such as guidance branches, that run interleaved; each runs through all blocks.
    """
    clock = _Clock()
    transport = _RehearsedTransport(clock, link, rank, shares.num_ranks)

    def divide(groups: Groups) -> _RehearsedTransport:
        (mine,) = [group for group in groups if rank in group]
        return _RehearsedTransport(clock, link, list(mine).index(rank), len(mine))

    def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
        # Only the result's shape matters, and it is the query's.
        clock.now += kernel.seconds(query, key)
        return query

    attend = join(Sharers(transport, divide), choice, attended)(shares)
    rehearsed = [_RehearsedBlock(block, clock) for block in blocks]
    value = blocks[0].attentions[0].value
    works: list[Generator[Wait, None, RehearsedTokens]]
    if isinstance(attend, Dealt):
        batch, _, heads, depth = value.shape
        whole = rehearsed_tokens(value.new_empty(batch, shares.num_tokens, heads, depth))
        deals = attend.by_layer([block.sites[0] for block in rehearsed], value.device)
        works = [through_dealt_blocks(rehearsed, whole, deals) for _ in range(streams)]
    else:
        works = [through_blocks(rehearsed, rehearsed_tokens(value), attend) for _ in range(streams)]
    run_interleaved(works, choice.lag)
    return clock.now


class _Clock:
    now = 0.0


class _RehearsedTransport(Transport):
    """Simulated connection of ranks: messages travel one by one in simulated time, beside computing."""

    def __init__(self, clock: _Clock, link: Link, rank: int, num_ranks: int) -> None:
        super().__init__(None)
        self.rank, self.num_ranks = rank, num_ranks
        self._clock, self._link = clock, link
        self._free = 0.0

    def among(self, ranks: Sequence[int]) -> Transport:
        return _RehearsedTransport(self._clock, self._link, list(ranks).index(self.rank), len(ranks))

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        like = outgoing[self.rank]
        others = [rank for rank in range(self.num_ranks) if rank != self.rank]
        sent = sum(outgoing[rank].nbytes for rank in others)
        received = sum(sizes[rank] for rank in others) * like.itemsize
        incoming = [like.new_empty(size) for size in sizes]
        if not sent and not received:
            return Transfer([], incoming, [])
        # A message waits until the link is free; latency delays its arrival, but does not occupy the link.
        begin = max(self._clock.now, self._free)
        self._free = begin + max(sent, received) * self._link.seconds_per_byte
        return _RehearsedTransfer(self._clock, self._free + self._link.latency, incoming)


class _RehearsedTransfer(Transfer):
    def __init__(self, clock: _Clock, arrives: float, incoming: list[Tensor]) -> None:
        super().__init__([], incoming, [])
        self._clock, self._arrives = clock, arrives

    def wait(self) -> list[Tensor]:
        self._clock.now = max(self._clock.now, self._arrives)
        return super().wait()


class _RehearsedBlock(Block["RehearsedTokens"]):
    """Simulated transformer block, which only advances the clock by the measured time of a real block."""

    def __init__(self, cost: BlockCost, clock: _Clock) -> None:
        self._cost, self._clock = cost, clock

    @property
    def sites(self) -> tuple[Site, ...]:
        attentions = enumerate(self._cost.attentions)
        return tuple(Site(0, str(number), pattern=cost.pattern) for number, cost in attentions)

    def run(self, tokens: RehearsedTokens, attend: Attend) -> Generator[Wait, None, RehearsedTokens]:
        for site, cost in zip(self.sites, self._cost.attentions, strict=True):
            yield from attend(site, self._projected(cost, tokens), tokens.layout)
        self._clock.now += self._cost.finish
        return tokens

    def _projected(self, cost: AttentionCost, tokens: RehearsedTokens) -> Projection:
        # A form that deals tokens may give a rank a few more or less than it was measured with.
        batch, _, heads, depth = cost.value.shape
        value = cost.value.new_empty(batch, tokens.hidden_states.shape[1], heads, depth)
        for taken in cost.projections:
            self._clock.now += taken
            yield value


class _StillRope(Rope):
    """Stand-in for RoPE that rotates nothing; RoPE's time is included in the measured times of q and k."""

    def apply(self, x: Tensor) -> Tensor:
        return x

    def shard(self, start: int, stop: int) -> Rope:  # noqa: ARG002
        return self

    def take(self, held: Tensor) -> Rope:  # noqa: ARG002
        return self

    def followed_by(self, other: Rope) -> Rope:  # noqa: ARG002
        return self


@dataclass(frozen=True, kw_only=True)
class RehearsedTokens(Tokens):
    """Tokens of a simulated forward, which have shapes but no data."""

    def shard(self, start: int, stop: int) -> Self:  # noqa: ARG002
        return self


def rehearsed_tokens(value: Tensor) -> RehearsedTokens:
    """Return tokens without data, for a simulated forward whose attention values have the shape of `value`.

    value: tensor of shape [B, S, H, D].
    """
    positions = torch.empty(value.shape[1], 3, device="meta")
    layout = Layout(rope=_StillRope(positions=positions, cos=positions, sin=positions))
    return RehearsedTokens(hidden_states=value.flatten(2), layout=layout)
