"""Attention forms rehearsed against a simulated clock, with given costs and therefore known times."""

import pytest
import torch
from torch import Tensor

from paradit.attention import ring_exchange
from paradit.attention.measured import MeasuredKernel
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


class Kernel(MeasuredKernel):
    def __init__(self) -> None:
        super().__init__(lambda query, *_: query, torch.device("cpu"))

    def seconds(self, query: Tensor, key: Tensor) -> float:
        assert key.shape[1] == TOKENS
        return ROW * query.shape[0] * query.shape[1] * query.shape[2]


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
        clock.now += ROW * query.shape[0] * query.shape[1] * query.shape[2] * key.shape[1] / TOKENS
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


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_without_a_link_it_is_the_work(chunks: int, interleave: bool) -> None:
    assert rehearsed(Link(0.0, 0.0), chunks, interleave) == WORK


def test_plain_ulysses_hides_only_what_travels_while_it_projects() -> None:
    link = Link(latency=0.25, seconds_per_byte=2.0**-12)
    travels = 4 * 2 * (TOKENS // 2) * (HEADS // 2) * DEPTH * 4 * link.seconds_per_byte  # a layer's
    # v is sent after the first projection, while the other two are computed.
    hidden = min(travels / 4, 2 * PROJECTION)
    assert rehearsed(link) == WORK + LAYERS * (travels - hidden + 2 * link.latency)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
def test_what_is_side_by_side_is_quicker_and_never_beyond_the_bound(ratio: float) -> None:
    link = Link(0.0, ratio * WORK / BYTES)
    serial = rehearsed(link)
    bound = max(WORK, ratio * WORK)
    for chunks, interleave in [(1, True), (2, True), (2, False), (4, False)]:
        assert bound <= rehearsed(link, chunks, interleave) < serial
    assert (serial - rehearsed(link, 2, interleave=True)) / (serial - bound) > 0.75


def test_latency_is_hidden_by_the_other_branch_not_by_chunks() -> None:
    link = Link(latency=10.0, seconds_per_byte=0.0)
    assert rehearsed(link, chunks=2, interleave=True) < rehearsed(link) == rehearsed(link, chunks=4)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 2.0])
def test_one_turn_behind_hides_as_much_or_more(ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(0.0, ratio * WORK / BYTES)
    behind = {chunks: rehearsed(link, chunks, interleave=True) for chunks in (2, 4)}
    monkeypatch.setattr(Choice, "lag", 0)
    for chunks, took in behind.items():
        assert took <= rehearsed(link, chunks, interleave=True)
