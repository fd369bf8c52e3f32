"""Shares of work: every piece is done once, in equal parts, for any tokens, heads and ranks."""

import itertools

import pytest

from paradit.distributed.shares import Box, Shares

CASES = list(itertools.product([1, 2, 27, 64], [1, 3, 12, 24], [1, 2, 3, 5, 7, 8]))


@pytest.mark.parametrize(("num_tokens", "num_heads", "num_ranks"), CASES)
def test_every_row_is_computed_once(num_tokens: int, num_heads: int, num_ranks: int) -> None:
    shares = Shares.equal(num_tokens, num_heads, num_ranks)
    done = [
        (head, row)
        for rank in range(num_ranks)
        for rows in shares.work_of(rank)
        for head in range(rows.first_head, rows.last_head)
        for row in range(rows.start, rows.stop)
    ]
    assert done == list(itertools.product(range(num_heads), range(num_tokens)))
    assert max(shares.work) - min(shares.work) <= 1
    assert max(len(shares.work_of(rank)) for rank in range(num_ranks)) <= 3


def test_a_rank_needs_the_heads_that_it_computes() -> None:
    shares = Shares.equal(num_tokens=16, num_heads=3, num_ranks=2)  # 24 rows each
    work = [shares.work_of(rank) for rank in range(2)]
    assert work == [[Box(0, 1, 0, 16), Box(1, 2, 0, 8)], [Box(1, 2, 8, 16), Box(2, 3, 0, 16)]]
    assert [shares.heads_for(boxes) for boxes in work] == [Box(0, 2, 0, 16), Box(1, 3, 0, 16)]
    assert [shares.tokens_of(rank) for rank in range(2)] == [Box(0, 3, 0, 8), Box(0, 3, 8, 16)]


@pytest.mark.parametrize(("num_tokens", "num_heads", "num_ranks"), CASES)
@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_chunks_make_up_the_work(num_tokens: int, num_heads: int, num_ranks: int, count: int) -> None:
    shares = Shares.equal(num_tokens, num_heads, num_ranks, num_replicated=3)
    for rank in range(num_ranks):
        chunks = shares.chunks_of(rank, count)
        assert len(chunks) == count
        assert sum(len(box) for chunk in chunks for box in chunk) == shares.work[rank]
        if shares.work[rank] >= count * shares.num_rows:
            # Chunks end where heads do, so that a head's keys travel with a single chunk.
            assert all(chunk[0].start == 0 for chunk in chunks[1:] if chunk)


def test_24_heads_on_7_ranks_are_equal_to_within_a_row() -> None:
    shares = Shares.equal(num_tokens=1000, num_heads=24, num_ranks=7)
    assert max(shares.work) <= 1.01 * sum(shares.work) / 7


def test_zero_shares() -> None:
    shares = Shares(num_heads=2, tokens=(4, 0, 2), work=(0, 12, 0))
    assert [len(shares.work_of(rank)) for rank in range(3)] == [0, 1, 0]
    assert shares.tokens_of(1) == Box(0, 2, 4, 4)


@pytest.mark.parametrize(
    ("tokens", "work", "message"),
    [
        ((4, 2), (12,), "2 ranks hold tokens, 1 have work"),
        ((4, 2), (13, -1), "negative"),
        ((4, 2), (6, 5), "make 11"),
    ],
)
def test_refuses_shares_that_do_not_fit(tokens: tuple[int, ...], work: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shares(num_heads=2, tokens=tokens, work=work)
