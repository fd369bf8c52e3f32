"""Attention forms rehearsed against a simulated clock, with given costs and therefore known times."""

import pytest

from paradit.attention.registry import Choice
from paradit.distributed.timing import Link
from rehearsed_attention import BYTES, DEPTH, HEADS, LAYERS, PROJECTION, TOKENS, WORK, rehearsed


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
