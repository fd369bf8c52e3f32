"""Small attention program with given costs, and its rehearsal in every form."""

import pytest
import torch
from torch import Tensor

from paradit.attention import ring_exchange
from paradit.attention.measured import MeasuredKernel
from paradit.attention.patterns import Pattern
from paradit.attention.pipesp_paper import pipesp_paper
from paradit.attention.registry import Choice
from paradit.attention.ring import ring
from paradit.attention.usp import usp
from paradit.attention.window import windowed_over
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares
from paradit.distributed.timing import Link
from paradit.parallel.run_blocks import run_interleaved, through_blocks
from paradit.tuning import rehearsal
from paradit.tuning.rehearsal import AttentionCost, BlockCost, rehearse, rehearsed_tokens

LAYERS, TOKENS, HEADS, DEPTH = 6, 64, 8, 16


PROJECTION, FINISH, ROW = 0.5, 4.5, 0.03125
"""Seconds of a projection and of `finish` for a batch of 2, and of a head's row; exact in binary."""


WORK = LAYERS * (3 * PROJECTION + FINISH + 2 * ROW * TOKENS * HEADS / 2)


BYTES = LAYERS * 4 * 2 * (TOKENS // 2) * (HEADS // 2) * DEPTH * 4
"""Number of bytes that a rank sends to the other: v, k, q and the results, for a batch of 2."""


SHARES = Shares.equal(TOKENS, HEADS, 2)


def kernel_seconds(query: Tensor, key: Tensor) -> float:
    return ROW * query.shape[0] * query.shape[1] * query.shape[2] * key.shape[1] / TOKENS


class Kernel(MeasuredKernel):
    """Kernel whose time is that of its pairs of queries and keys."""

    def __init__(self) -> None:
        super().__init__(lambda query, *_: query, torch.device("cpu"))

    def seconds(self, query: Tensor, key: Tensor, pattern: Pattern | None = None) -> float:
        assert pattern is None, "each group is computed by itself"
        return kernel_seconds(query, key)


def block_cost(value: Tensor, streams: int) -> BlockCost:
    return BlockCost((AttentionCost(value, (PROJECTION / streams,) * 3),), FINISH / streams)


def rehearsed(link: Link, chunks: int = 1, interleave: bool = False) -> float:
    streams = 2 if interleave else 1
    value = torch.empty(2 // streams, TOKENS // 2, HEADS, DEPTH, device="meta")
    block = block_cost(value, streams)
    form = Choice.of("pipesp", chunks=chunks, interleave=interleave)
    return rehearse(form, SHARES, 0, link=link, streams=streams, blocks=[block] * LAYERS, kernel=Kernel())


def rehearsed_otherwise(link: Link, form: Choice, streams: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Rehearse one of the forms that no run rehearses, and return the seconds.

    These are `ring`, `pipesp-paper`, `windowed` (of long videos), and `usp` on four ranks, a ring of two
    groups.
    """
    clock = rehearsal._Clock()
    transport = rehearsal._RehearsedTransport(clock, link, 0, 2)

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
        clock.now += kernel_seconds(query, key)
        return query

    held = TOKENS // (4 if form.name == "usp" else 2)
    value = torch.empty(2 // streams, held, HEADS, DEPTH, device="meta")
    if form.name in ("ring", "usp"):
        monkeypatch.setattr(ring_exchange, "sdpa_with_lse", lambda q, k, v: (kernel(q, k, v), q[..., 0]))
    if form.name == "ring":
        attend = ring(SHARES.tokens, transport)
    elif form.name == "usp":
        within = UlyssesExchange(Shares.equal(2 * held, HEADS, 2), transport, whole_heads=True)
        attend = usp(within, SHARES.tokens, rehearsal._RehearsedTransport(clock, link, 0, 2))
    elif form.name == "windowed":
        exchange = UlyssesExchange(SHARES, transport, whole_heads=True)
        attend = windowed_over(exchange, rehearsed_tokens(value).layout.rope, kernel)
    else:
        by_head = UlyssesExchange(SHARES, transport, HEADS // 2)
        attend = pipesp_paper(UlyssesExchange(SHARES, transport), by_head, kernel)
    blocks = [rehearsal._RehearsedBlock(block_cost(value, streams), clock)] * LAYERS
    tokens = rehearsed_tokens(value)
    run_interleaved([through_blocks(blocks, tokens, attend) for _ in range(streams)])
    return clock.now
