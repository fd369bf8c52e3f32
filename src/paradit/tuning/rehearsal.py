"""How long a forward takes in one form or another: it is rehearsed against a clock, with measured costs.

What is rehearsed is the program that runs, `forward` with its attention and its exchange, so no schedule is
described twice. But its tensors hold nothing (torch's device "meta"), its blocks and its kernel only let the
time pass that theirs were seen to take, and its messages share a link of a latency and a rate: Hockney's
alpha-beta model (Parallel Computing 20, 1994), for one rank, with the others like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paradit.attention.measured import MeasuredKernel
from paradit.attention.registry import Choice
from paradit.distributed.mesh import Groups, Sharers
from paradit.distributed.shares import Shares
from paradit.distributed.timing import TIMES, Link, now, seconds
from paradit.distributed.transport import Transfer, Transport
from paradit.parallel.forward import forward, run_interleaved


@dataclass(frozen=True)
class BlockCost:
    """What a block takes of a rank that holds a part of the tokens."""

    value: Tensor
    """[B, S, H, D], empty: what `project` gives."""
    projections: tuple[float, ...]
    """Seconds for v, k and q, with their RoPE."""
    finish: float


def measure_block(block: Any, tokens: Any) -> BlockCost:
    """A block's pieces, on a rank's tokens."""
    device, rope = tokens.hidden_states.device, tokens.layout.rope
    rows = [_rows_of(block, tokens, rope, device) for _ in range(TIMES + 1)][1:]
    value = next(iter(block.project(tokens)))
    return BlockCost(
        value=torch.empty_like(value, device="meta"),
        projections=tuple(min(times) for times in zip(*rows, strict=True)),
        finish=seconds(lambda: block.finish(tokens, value), device),
    )


def _rows_of(block: Any, tokens: Any, rope: Any, device: torch.device) -> list[float]:
    """Seconds for v, k and q, the last two with their RoPE."""
    taken, began = [], now(device)
    for index, projected in enumerate(block.project(tokens)):
        if index:
            rope.apply(projected)
        moment = now(device)
        taken.append(moment - began)
        began = moment
    return taken


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
    """The seconds that blocks take on one rank, by a choice of attention that needs no log-sum-exp.

    streams: how many run side by side; each has blocks of these costs.
    """
    clock = _Clock()
    transport = _RehearsedTransport(clock, link, rank, shares.num_ranks)

    def divide(groups: Groups) -> _RehearsedTransport:
        (mine,) = [group for group in groups if rank in group]
        return _RehearsedTransport(clock, link, list(mine).index(rank), len(mine))

    def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
        clock.now += kernel.seconds(query, key)
        return query

    tokens: Any = _RehearsedTokens()
    transformer: Any = _RehearsedTransformer([_RehearsedBlock(block, clock) for block in blocks])
    attend = choice.form.join(Sharers(transport, divide), choice, attended)(shares)
    run_interleaved([forward(transformer, tokens, attend) for _ in range(streams)], choice.lag)
    return clock.now


class _Clock:
    now = 0.0


class _RehearsedTransport(Transport):
    """Messages travel one after the other, in the order in which they are started, while work goes on."""

    def __init__(self, clock: _Clock, link: Link, rank: int, num_ranks: int) -> None:
        super().__init__(None)
        self.rank, self.num_ranks = rank, num_ranks
        self._clock, self._link = clock, link
        self._free = 0.0

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        like = outgoing[self.rank]
        others = [rank for rank in range(self.num_ranks) if rank != self.rank]
        sent = sum(outgoing[rank].nbytes for rank in others)
        received = sum(sizes[rank] for rank in others) * like.itemsize
        incoming = [like.new_empty(size) for size in sizes]
        if not sent and not received:
            return Transfer([], incoming, [])
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


class _RehearsedBlock:
    def __init__(self, cost: BlockCost, clock: _Clock) -> None:
        self._cost, self._clock = cost, clock

    def project(self, _tokens: Any) -> Iterator[Tensor]:
        for taken in self._cost.projections:
            self._clock.now += taken
            yield self._cost.value

    def finish(self, tokens: Any, _attended: Tensor) -> Any:
        self._clock.now += self._cost.finish
        return tokens


class _RehearsedTransformer:
    def __init__(self, blocks: list[_RehearsedBlock]) -> None:
        self.blocks = blocks

    def head(self, tokens: Any) -> Any:
        return tokens


class _RehearsedTokens:
    """Have no values; the time of RoPE is in the projections'."""

    def __init__(self) -> None:
        self.layout = self.rope = self

    def apply(self, x: Tensor) -> Tensor:
        return x
