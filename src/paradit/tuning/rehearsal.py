"""How long a forward takes in one form or another: it is rehearsed against a clock, with measured costs.

What is rehearsed is the program that runs, `forward` with its attention and its exchange, so no schedule is
described twice. But its tensors hold nothing (torch's device "meta"), its blocks and its kernel only let the
time pass that theirs were seen to take, and its messages share a link of a latency and a rate: Hockney's
alpha-beta model (Parallel Computing 20, 1994), for one rank, with the others like it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paradit.attention.base import Kernel
from paradit.attention.ulysses import ulysses
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares
from paradit.distributed.transport import Transfer, Transport
from paradit.parallel.forward import forward, run_interleaved
from paradit.placement import Form
from paradit.trace.spans import LINK, STAGE, begin, end, unrecorded

TIMES = 2
"""How often each cost is measured, after a first time that does not count; the shortest is taken."""
LARGEST_MESSAGE = 2**23
"""Bytes to each rank with which a link's rate is measured, at most."""

TRACED_MESSAGE = 2**20
"""Bytes to each rank with which a traced run measures its link, before sizes are known."""


@dataclass(frozen=True)
class Link:
    """What a message between ranks takes, while all of them send."""

    latency: float
    """Seconds from the start of a small one to its arrival."""
    seconds_per_byte: float
    """Of all that a rank sends, or receives, whatever is more."""


@dataclass(frozen=True)
class BlockCost:
    """What a block takes of a rank that holds a part of the tokens."""

    value: Tensor
    """[B, S, H, D], empty: what `project` gives."""
    projections: tuple[float, ...]
    """Seconds for v, k and q, with their RoPE."""
    finish: float


def measure_link(
    transport: Transport, num_bytes: int, device: torch.device, peers: Sequence[int] | None = None
) -> Link:
    """All ranks of the transport call it together, with the same number.

    num_bytes: what a rank may send to another in an exchange. peers: the ranks with which this one exchanges,
    where that is not each with each other; they all call it.
    """
    if peers is None:
        peers = [rank for rank in range(transport.num_ranks) if rank != transport.rank]

    def exchange(size: int) -> Callable[[], object]:
        outgoing = [message(size if rank in peers else 0) for rank in range(transport.num_ranks)]
        return lambda: transport.start(outgoing, [len(part) for part in outgoing]).wait()

    def message(size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=device)

    size = min(max(1, num_bytes), LARGEST_MESSAGE)
    latency = seconds(exchange(1), device)
    taken = seconds(exchange(size), device)
    return Link(latency, max(0.0, taken - latency) / (size * max(1, len(peers))))


def trace_link(transport: Transport, device: torch.device) -> None:
    """Measure the link for the trace, which says how much of the communication was hidden.

    All ranks of the transport call it together.
    """
    traced = begin(LINK, STAGE)
    with unrecorded():
        link = measure_link(transport, TRACED_MESSAGE, device)
    end(traced, latency=link.latency, seconds_per_byte=link.seconds_per_byte, device=device.type)


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


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes: the shortest of several times, after one to warm up."""
    work()
    taken = []
    for _ in range(TIMES):
        began = now(device)
        work()
        taken.append(now(device) - began)
    return min(taken)


def now(device: torch.device) -> float:
    """Seconds on a clock, once all is done that the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class MeasuredKernel:
    """A kernel's seconds by the shapes that it gets; each is measured when it is first asked for."""

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self._kernel, self._device = kernel, device
        self._seconds: dict[tuple[torch.Size, torch.Size], float] = {}

    def seconds(self, query: Tensor, key: Tensor) -> float:
        """Of empty queries and keys [B, S, H, D]."""
        shapes = query.shape, key.shape
        if shapes not in self._seconds:
            q, k = (torch.randn(shape, dtype=query.dtype, device=self._device) for shape in shapes)
            self._seconds[shapes] = seconds(lambda: self._kernel(q, k, k), self._device)
        return self._seconds[shapes]


def rehearse(
    form: Form,
    shares: Shares,
    rank: int,
    *,
    link: Link,
    streams: int,
    blocks: Sequence[BlockCost],
    kernel: MeasuredKernel,
) -> float:
    """The seconds that blocks take in a form, `ulysses` or `pipesp`, on one rank.

    streams: how many run side by side; each has blocks of these costs.
    """
    clock = _Clock()
    exchange = UlyssesExchange(shares, _RehearsedTransport(clock, link, rank, shares.num_ranks), form.chunks)

    def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
        clock.now += kernel.seconds(query, key)
        return query

    tokens: Any = _RehearsedTokens()
    transformer: Any = _RehearsedTransformer([_RehearsedBlock(block, clock) for block in blocks])
    attend = ulysses(exchange, attended)
    run_interleaved([forward(transformer, tokens, attend) for _ in range(streams)], form.lag)
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
