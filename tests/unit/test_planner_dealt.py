"""The planner's time and bytes of attention whose tokens are dealt to ranks by group."""

from collections.abc import Hashable
from dataclasses import replace

import pytest
import torch

from paradit.attention.patterns import FULL, Pattern
from paradit.attention.registry import Choice
from paradit.attention.timing import layer
from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.distributed.shares import Shares
from paradit.distributed.timing import Link
from paradit.models.published import published_spec
from paradit.planner.discrete_events import Message, Post
from paradit.planner.step import forward
from paradit.tuning.rehearsal import AttentionCost, BlockCost, rehearse
from planner_cases import branch, cluster
from rehearsed_attention import DEPTH, FINISH, HEADS, PROJECTION, ROW, TOKENS, Kernel

SKIPARSE = Choice.of("skiparse")
PATTERNS = Pattern(groups=4), Pattern(groups=4, run=4)
LAYERS = 6


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("link", [(0.0, 2.0**-20), (0.25, 2.0**-12)])
def test_sparse_layers_are_the_program_rehearsed(link: tuple[float, float], ranks: int) -> None:
    shares = Shares.equal(TOKENS, HEADS, ranks)

    def rehearsed(layers: int) -> float:
        value = torch.empty(2, TOKENS // ranks, HEADS, DEPTH, device="meta")
        blocks = [
            BlockCost((AttentionCost(value, (PROJECTION,) * 3, PATTERNS[number % 2]),), FINISH)
            for number in range(layers)
        ]
        return rehearse(SKIPARSE, shares, 0, link=Link(*link), streams=1, blocks=blocks, kernel=Kernel())

    latency, seconds_per_byte = link
    one = replace(
        branch(cluster(ranks, latency, 1 / seconds_per_byte), shares),
        pattern=PATTERNS[1],
        sparse_patterns=PATTERNS,
    )
    costs = [replace(cost, head_row=ROW / 4) for cost in one.costs]
    one = replace(one, costs=costs)
    simulation = forward([(one, layer(one, SKIPARSE))], LAYERS)
    # The program's first layer has its tokens already.
    assert simulation.seconds == pytest.approx(rehearsed(LAYERS + 1) - rehearsed(1), rel=1e-12)


@pytest.mark.parametrize(("ranks", "tensors"), [(2, 1 / 2), (4, 3 / 4), (8, 2.5), (16, 3.0)])
def test_bytes_of_a_sparse_layer(ranks: int, tensors: float) -> None:
    """The planner counts the bytes that `test_dealt_tokens` counts when the program runs."""
    one = branch(cluster(ranks), Shares.equal(1024, 16, ranks))
    one = replace(one, pattern=PATTERNS[0], sparse_patterns=PATTERNS)
    program = layer(one, SKIPARSE)
    messages: dict[Hashable, Message] = {}
    for rank in range(ranks):
        messages |= {step.key: step.message for step in program(rank, 0) if isinstance(step, Post)}
    sent = sum(sum(sum(row) for row in message.table) for message in messages.values())
    assert sent == tensors * 1024 * 16 * one.row_bytes
    full = replace(one, pattern=FULL)
    assert isinstance(layer(full, SKIPARSE), type(layer(full, Choice.plain())))


def test_auto_tries_it_where_the_ranks_fit() -> None:
    spec = published_spec("Open-Sora-Plan-v1.3.0").transformers[0]

    def forms(ranks: int, patterns: frozenset[Pattern]) -> set[str]:
        choices = Placement(ranks=ranks).choices(spec.num_attention_heads, 2, patterns)
        return {choice.name for choice in choices}

    for ranks in (2, 4, 8, 12):
        assert "skiparse" in forms(ranks, spec.sparse_patterns)
        assert "skiparse" not in forms(ranks, frozenset())
    for ranks in (3, 5, 6, 7):
        assert forms(ranks, spec.sparse_patterns) == {"pipesp"}


@pytest.mark.parametrize(("ranks", "fewer"), [(3, 2), (5, 4), (7, 4), (10, 8)])
def test_an_error_names_a_number_of_ranks_that_fits(ranks: int, fewer: int) -> None:
    with pytest.raises(InputError, match=f"{ranks} ranks neither .* pipesp, or {fewer} ranks$"):
        Placement(ranks=ranks, attention="skiparse").check_attention(frozenset(PATTERNS))
