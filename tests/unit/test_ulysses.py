"""Ulysses over shares: layouts, exactness and bytes, for shapes and shares of every kind."""

import random

import pytest
import torch
from torch import Tensor

from attention_in_memory import DEPTH, FORMS, SHARES, Form, attend_on_ranks, chunked, random_qkv, world
from paradit.attention.local_attention import sdpa
from paradit.attention.some_rows import some_rows
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.redistribution import Redistribution, start
from paradit.distributed.shares import Box, Shares
from threads import one_thread

each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_share = pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)


@each_form
@each_share
def test_equals_attention_in_one_place(shares: Shares, form: Form) -> None:
    q, k, v = random_qkv(shares)
    attended, _ = attend_on_ranks(shares, q, k, v, form)
    assert attended.shape == q.shape
    torch.testing.assert_close(attended, sdpa(q, k, v), rtol=0, atol=1e-6)


@each_share
@pytest.mark.parametrize("num_chunks", [1, 3])
def test_bytes_are_those_that_the_exchange_says(shares: Shares, num_chunks: int) -> None:
    _, transports = attend_on_ranks(shares, *random_qkv(shares), chunked(num_chunks))
    exchange = UlyssesExchange(shares, transports[0], num_chunks)
    said = [
        exchange.bytes_sent(rank, batch=2, head_dim=DEPTH, itemsize=4) for rank in range(shares.num_ranks)
    ]
    assert [transport.bytes_sent for transport in transports] == said


def indices(box: Box, num_heads: int) -> Tensor:
    """Return a box's tensor [1, tokens, heads, 1] whose values encode the token and the head."""
    tokens = torch.arange(box.start, box.stop)[:, None] * num_heads
    return (tokens + torch.arange(box.first_head, box.last_head))[None, :, :, None]


@each_share
@pytest.mark.parametrize("move", ["queries", "heads", "results"])
def test_every_value_arrives_where_it_belongs(shares: Shares, move: str) -> None:
    transports = world(shares.num_ranks)
    ranks = range(shares.num_ranks)
    tokens, work = [[shares.tokens_of(r)] for r in ranks], [shares.work_of(r) for r in ranks]
    heads = [[shares.heads_for(boxes)] for boxes in work]
    source, target = {"queries": (tokens, work), "heads": (tokens, heads), "results": (work, tokens)}[move]
    replicated = [shares.replicated] if shares.num_replicated and move != "results" else []
    helpers = shares.num_helpers
    arrivals = []
    for transport in transports:
        redistribution = Redistribution(source, target, transport, replicated, helpers)
        tensors = [indices(box, shares.num_heads) for box in redistribution.held]
        like = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
        arrivals.append(start([redistribution.move(tensors, like)]))
    for rank, arrival in enumerate(arrivals):
        (received,) = arrival.wait()
        assert len(received) == len(target[rank])
        for box, tensor in zip(target[rank], received, strict=True):
            assert torch.equal(tensor, indices(box, shares.num_heads))
        assert arrival.wait()[0] is received  # a second wait returns the same


def test_refuses_shares_for_another_number_of_ranks() -> None:
    with pytest.raises(ValueError, match="shares for 3 ranks, and 2 exchange"):
        UlyssesExchange(Shares.equal(6, 1, 3), world(2)[0])


@each_form
@pytest.mark.parametrize("num_ranks", [2, 3, 4, 5, 7])
@one_thread()
def test_the_bits_are_those_of_one_place(num_ranks: int, form: Form) -> None:
    shares = Shares.equal(324, 6, num_ranks)
    q, k, v = random_qkv(shares)
    attended, _ = attend_on_ranks(shares, q, k, v, form)
    assert torch.equal(attended, sdpa(q, k, v))


@pytest.mark.parametrize("depth", [16, 36, 64, 128])
@pytest.mark.parametrize("total", [5, 33, 100, 194, 324, 780])
@one_thread()
def test_some_rows_have_the_bits_of_all(total: int, depth: int) -> None:
    q, k, v = (torch.randn(2, total, 2, depth) for _ in range(3))
    expected = sdpa(q, k, v)
    numbers = random.Random(0)
    for _ in range(30):
        start = numbers.randrange(total)
        stop = numbers.randrange(start, total) + 1
        assert torch.equal(some_rows(sdpa, q[:, start:stop], k, v, start=start), expected[:, start:stop])
