"""A made-up transformer whose blocks attend twice, in one process and on two ranks."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from paradit.attention.base import Attend, Layout, Projection, Site, Wait
from paradit.attention.local_attention import local
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.attention.rope import Rope, grid_positions
from paradit.distributed.mesh import Mesh
from paradit.distributed.world import World
from paradit.models.protocol import Block, SplitTransformer, Tokens
from paradit.parallel.run_blocks import run, through_blocks
from paradit.parallel.sequence_parallel import SequenceParallel
from paradit.testing import run_world

HEADS, DEPTH, TOKENS, LAYERS = 4, 16, 37, 2
WIDTH = HEADS * DEPTH
PATTERNS = Pattern(4), Pattern(4, run=4)
EXACT = Choice.plain(), Choice.of("pipesp", chunks=2), Choice.of("pipesp-paper")


@dataclass(frozen=True, kw_only=True)
class Plain(Tokens):
    """Tokens with hidden states and nothing else."""

    @property
    def changing(self) -> tuple[Tensor]:
        return (self.hidden_states,)

    def shard(self, start: int, stop: int) -> Self:
        layout = replace(self.layout, rope=self.layout.rope.shard(start, stop))
        return replace(self, hidden_states=self.hidden_states[:, start:stop], layout=layout)


class Twice(Block[Plain]):
    """Transformer block that attends, and then attends again with new queries, keys and values."""

    def __init__(self, layer: int, pattern: Pattern | None = None) -> None:
        self.site = Site(layer, pattern=pattern)
        generator = torch.Generator().manual_seed(layer)
        self.weights = torch.randn(6, WIDTH, WIDTH, generator=generator) / WIDTH**0.5

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.site, replace(self.site, name="again")

    def run(self, tokens: Plain, attend: Attend) -> Generator[Wait, None, Plain]:
        hidden_states = tokens.hidden_states
        for number, site in enumerate(self.sites):
            projection = self._projected(hidden_states, 3 * number)
            attended = yield from attend(site, projection, tokens.layout)
            hidden_states = hidden_states + attended.flatten(2)
        return replace(tokens, hidden_states=hidden_states)

    def _projected(self, hidden_states: Tensor, first: int) -> Projection:
        # Computed row by row, because a matrix product may round differently for other numbers of rows.
        weights = self.weights[first : first + 3]
        return iter(
            [
                (hidden_states[..., None, :] * weight).sum(-1).unflatten(2, (HEADS, DEPTH))
                for weight in weights
            ]
        )


class MadeUp(SplitTransformer[Plain, Any, Layout]):
    """Transformer with only the parts that a forward needs."""

    num_heads = HEADS
    blocks: Sequence[Twice] = [Twice(layer) for layer in range(LAYERS)]

    def head(self, tokens: Plain) -> Tensor:
        return tokens.hidden_states


MadeUp.__abstractmethods__ = frozenset()


class Sparse(MadeUp):
    """Transformer whose blocks attend twice, each time by a pattern."""

    blocks: Sequence[Twice] = [Twice(layer, pattern) for layer, pattern in enumerate(PATTERNS)]


def made_up() -> Any:
    return MadeUp()  # type: ignore[abstract]  # its forward needs no more


def sparse() -> Any:
    return Sparse()  # type: ignore[abstract]


def tokens() -> Plain:
    angles = torch.linspace(0, 3, TOKENS)[None, :, None, None].expand(1, TOKENS, 1, DEPTH).contiguous()
    sin = angles.sin()
    sin[..., 0::2].neg_()
    rope = Rope(positions=grid_positions((TOKENS, 1, 1)), cos=angles.cos(), sin=sin)
    hidden_states = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(9))
    return Plain(hidden_states=hidden_states, layout=Layout(rope=rope))


def on_ranks(world: World) -> tuple[list[Tensor], list[Tensor]]:
    def forward(transformer: Any, choice: Choice) -> Tensor:
        return SequenceParallel(Mesh(world), [choice]).forward(transformer, tokens())

    dense = [forward(made_up(), choice) for choice in (*EXACT, Choice.of("ring"))]
    return dense, [forward(sparse(), choice) for choice in EXACT]


def test_blocks_that_attend_twice() -> None:
    seen: list[tuple[int, int, str]] = []

    def attend(site: Site, projection: Iterator[Tensor], layout: Layout) -> Generator[Wait, None, Tensor]:
        seen.append((site.step, *site.key))
        return local()(site, projection, layout)

    alone = made_up().head(run(through_blocks(made_up().blocks, tokens(), attend, step=5)))
    assert seen == [(5, 0, "self"), (5, 0, "again"), (5, 1, "self"), (5, 1, "again")]
    assert [site.key for site in made_up().sites] == [key[1:] for key in seen]
    by_patterns = sparse().head(run(through_blocks(sparse().blocks, tokens(), local())))
    assert not torch.allclose(by_patterns, alone, atol=1e-2)
    for (*exact, ring), patterned in run_world(on_ranks, 2):
        assert all(torch.equal(one, alone) for one in exact)
        torch.testing.assert_close(ring, alone, rtol=0, atol=1e-5)
        assert all(torch.equal(one, by_patterns) for one in patterned)
