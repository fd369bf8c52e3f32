"""A made-up transformer whose blocks attend twice, in one process and on two ranks."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from made_up import made_up, projected, random_tokens, random_weights
from paradit.attention.base import Attend, Layout, Site, Wait
from paradit.attention.local_attention import local
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.distributed.mesh import Mesh
from paradit.distributed.world import World
from paradit.models.protocol import Block, Tokens
from paradit.parallel.run_blocks import run, through_blocks
from paradit.parallel.sequence_parallel import SequenceParallel
from paradit.testing import run_world

HEADS, TOKENS, LAYERS = 4, 37, 2
PATTERNS = Pattern(4), Pattern(4, run=4)
EXACT = Choice.plain(), Choice.of("pipesp", chunks=2), Choice.of("pipesp-paper")


class Twice(Block[Tokens]):
    """Transformer block that attends, and then attends again with new queries, keys and values."""

    def __init__(self, layer: int, pattern: Pattern | None = None) -> None:
        self.site = Site(layer, pattern=pattern)
        self.weights = random_weights(layer, 6, HEADS)

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.site, replace(self.site, name="again")

    def run(self, tokens: Tokens, attend: Attend) -> Generator[Wait, None, Tokens]:
        hidden_states = tokens.hidden_states
        for site, weights in zip(self.sites, self.weights.split(3), strict=True):
            projection = projected(hidden_states, weights)
            attended = yield from attend(site, projection, tokens.layout)
            hidden_states = hidden_states + attended.flatten(2)
        return replace(tokens, hidden_states=hidden_states)


def dense() -> Any:
    return made_up(HEADS, [Twice(layer) for layer in range(LAYERS)])


def sparse() -> Any:
    return made_up(HEADS, [Twice(layer, pattern) for layer, pattern in enumerate(PATTERNS)])


def tokens() -> Tokens:
    return random_tokens(TOKENS, HEADS)


def on_ranks(world: World) -> tuple[list[Tensor], list[Tensor]]:
    def forward(transformer: Any, choice: Choice) -> Tensor:
        return SequenceParallel(Mesh(world), [choice]).forward(transformer, tokens())

    everything = [forward(dense(), choice) for choice in (*EXACT, Choice.of("ring"))]
    return everything, [forward(sparse(), choice) for choice in EXACT]


def test_blocks_that_attend_twice() -> None:
    seen: list[tuple[int, int, str]] = []

    def attend(site: Site, projection: Iterator[Tensor], layout: Layout) -> Generator[Wait, None, Tensor]:
        seen.append((site.step, *site.key))
        return local()(site, projection, layout)

    alone = dense().head(run(through_blocks(dense().blocks, tokens(), attend, step=5)))
    assert seen == [(5, 0, "self"), (5, 0, "again"), (5, 1, "self"), (5, 1, "again")]
    assert [site.key for site in dense().sites] == [key[1:] for key in seen]
    by_patterns = sparse().head(run(through_blocks(sparse().blocks, tokens(), local())))
    assert not torch.allclose(by_patterns, alone, atol=1e-2)
    for (*exact, ring), patterned in run_world(on_ranks, 2):
        assert all(torch.equal(one, alone) for one in exact)
        torch.testing.assert_close(ring, alone, rtol=0, atol=1e-5)
        assert all(torch.equal(one, by_patterns) for one in patterned)
