"""Transformers with sparse layers, whose tokens are dealt to ranks by group."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attention_in_memory import chunked, run_together, world
from paradit.attention.base import Layout, Projection, Site, Wait
from paradit.attention.dealt import DealtByGroup
from paradit.attention.local_attention import local, sdpa
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.attention.rope import Rope, grid_positions
from paradit.distributed.mesh import Mesh
from paradit.distributed.shares import Shares
from paradit.distributed.world import World
from paradit.models.open_sora_plan.transformer import OpenSoraPlanTransformer
from paradit.models.protocol import Block, SplitTransformer, Tokens, of_any_family
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.parallel.run_blocks import run, through_blocks, through_dealt_blocks
from paradit.parallel.sequence_parallel import SequenceParallel
from paradit.testing import run_world
from small_open_sora_plan import inputs, transformer

HEADS, DEPTH = 16, 16
WIDTH = HEADS * DEPTH
SKIPPED, RUNS = Pattern(groups=4), Pattern(groups=4, run=4)
TOKENS = 256
PATTERNS = (None, SKIPPED, RUNS, SKIPPED, RUNS, None)
"""Patterns of the layers: full attention at both ends, and sparse attention between them."""


@dataclass(frozen=True, kw_only=True)
class Plain(Tokens):
    """Tokens with hidden states and nothing else."""

    @property
    def changing(self) -> tuple[Tensor]:
        return (self.hidden_states,)

    def shard(self, start: int, stop: int) -> Self:
        return replace(
            self, hidden_states=self.hidden_states[:, start:stop], layout=self.layout.shard(start, stop)
        )


class Attending(Block[Plain]):
    """Transformer block that only attends, with random projections."""

    def __init__(self, layer: int, pattern: Pattern | None) -> None:
        self.site = Site(layer, pattern=pattern)
        generator = torch.Generator().manual_seed(layer)
        self.weights = torch.randn(3, WIDTH, WIDTH, generator=generator) / WIDTH**0.5

    def project(self, tokens: Plain) -> Projection:
        # Computed row by row, because a matrix product may round differently for other numbers of rows.
        for weight in self.weights:
            yield (tokens.hidden_states[..., None, :] * weight).sum(-1).unflatten(2, (HEADS, DEPTH))

    def finish(self, tokens: Plain, attended: Tensor) -> Plain:
        return replace(tokens, hidden_states=tokens.hidden_states + attended.flatten(2))


class Idle(Attending):
    """Transformer block that only attends, with its hidden states as queries, keys and values."""

    def project(self, tokens: Plain) -> Projection:
        for _ in self.weights:
            yield tokens.hidden_states.unflatten(2, (HEADS, DEPTH))


class MadeUp(SplitTransformer[Plain, Any, Layout]):
    """Transformer with only the parts that a forward needs."""

    num_heads = HEADS
    blocks: Sequence[Attending] = [Attending(*layer) for layer in enumerate(PATTERNS)]

    def head(self, tokens: Plain) -> Tensor:
        return tokens.hidden_states


MadeUp.__abstractmethods__ = frozenset()


def made_up() -> Any:
    return MadeUp()  # type: ignore[abstract]  # its forward needs no more


def tokens(number: int) -> Plain:
    angles = torch.linspace(0, 3, number)[None, :, None, None].expand(1, number, 1, DEPTH).contiguous()
    sin = angles.sin()
    sin[..., 0::2].neg_()
    rope = Rope(positions=grid_positions((number, 1, 1)), cos=angles.cos(), sin=sin)
    hidden_states = torch.randn(2, number, WIDTH, generator=torch.Generator().manual_seed(9))
    return Plain(hidden_states=hidden_states, layout=Layout(rope=rope))


def masked(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
    """Compute attention of all tokens by a boolean mask of all pairs, written out."""
    yield from ()
    value, key, query = projection
    query, key = layout.rope.apply(query), layout.rope.apply(key)
    index = torch.arange(query.shape[1])
    pattern = site.pattern or Pattern(groups=1)
    group = index // pattern.run % pattern.groups
    mask = group[:, None] == group
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def expected(number: int) -> Tensor:
    return run(through_blocks(MadeUp.blocks, tokens(number), masked)).hidden_states


def sent(transport: Any) -> int:
    return transport.bytes_sent + sum(map(sent, transport.teams))


@pytest.mark.parametrize("num_ranks", [2, 4, 8, 12])
@pytest.mark.parametrize("number", [64, 77])
def test_on_ranks_in_memory(num_ranks: int, number: int) -> None:
    shares = Shares.equal(number, HEADS, num_ranks)
    works: list[Any] = []
    deals = []
    for transport in world(num_ranks):
        dealt = DealtByGroup(shares, transport, sdpa)
        deals.append(dealt.by_layer(made_up().sites, torch.device("cpu")))
        works.append(through_dealt_blocks(MadeUp.blocks, tokens(number), deals[-1]))
    found = torch.full_like(tokens(number).hidden_states, torch.nan)
    done: list[Any] = run_together(works)
    for rank, deal in enumerate(deals):
        found[:, deal[-1].held] = done[rank].hidden_states
    assert torch.equal(found, run(through_blocks(MadeUp.blocks, tokens(number), local())).hidden_states)
    torch.testing.assert_close(found, expected(number), rtol=1e-5, atol=1e-5)


def bytes_sent(num_ranks: int, patterns: Sequence[Pattern | None], *, dealt: bool) -> int:
    """Return the bytes that all ranks together send in a forward through layers with these patterns."""
    shares = Shares.equal(TOKENS, HEADS, num_ranks)
    blocks = [Idle(*layer) for layer in enumerate(patterns)]
    transports, whole, works = world(num_ranks), tokens(TOKENS), []
    for transport in transports:
        if dealt:
            deals = DealtByGroup(shares, transport, sdpa).by_layer(
                [block.site for block in blocks], torch.device("cpu")
            )
            works.append(through_dealt_blocks(blocks, whole, deals))
        else:
            attend, held = chunked(1)(shares, transport), shares.tokens_of(transport.rank)
            works.append(through_blocks(blocks, whole.shard(held.start, held.stop), attend))
    run_together(works)
    return sum(map(sent, transports))


@pytest.mark.parametrize("num_ranks", [2, 4, 8, 16])
def test_bytes_of_32_layers(num_ranks: int) -> None:
    """Hidden states move once before a sparse layer, which else needs messages only within a team."""
    layers = [None, None, *[SKIPPED, RUNS] * 14, None, None]
    tensor = tokens(TOKENS).hidden_states.nbytes
    team = max(1, num_ranks // 4)
    full = 4 * (num_ranks - 1) / num_ranks
    sparse = 4 * (team - 1) / team
    moved = {2: 1 / 2, 4: 3 / 4, 8: 1 / 2, 16: 0}[num_ranks]
    found = bytes_sent(num_ranks, layers, dealt=True)
    assert found == tensor * (4 * full + 28 * sparse + 27 * moved)
    wanted = {2: 0.336, 4: 0.336, 8: 0.746, 16: 0.825}[num_ranks]
    assert found / bytes_sent(num_ranks, layers, dealt=False) == pytest.approx(wanted, abs=1e-3)


SHAPE = 3, 8, 8  # 48 tokens
FORMS = {
    "ulysses": Choice.of("ulysses"),
    "pipesp": Choice.of("pipesp", chunks=2),
    "skiparse": Choice.of("skiparse"),
    "skiparse, interleaved": Choice.of("skiparse", interleave=True),
}


def predictions(predictor: Predictor) -> Tensor:
    """Return an Open-Sora-Plan transformer's predictions for two guidance branches."""
    module = transformer(heads=4)
    seam = of_any_family(OpenSoraPlanTransformer(module))
    torch.manual_seed(1)
    latents, timestep, (embeds, mask) = inputs(module, (2, *SHAPE), (5, 9))
    contexts = predictor.contexts(seam, [(embeds[:1], mask[:1]), (embeds[1:], mask[1:])])
    with torch.no_grad():
        found = predictor.predict(seam, latents[:1], timestep[:1], contexts, seam.layout(SHAPE))
    return torch.cat(found)


def on_ranks(world: World) -> dict[str, Tensor]:
    mesh = Mesh(world)
    return {name: predictions(SequenceParallel(mesh, [form])) for name, form in FORMS.items()}


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_open_sora_plan(num_ranks: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = predictions(LocalPredictor())
    torch.set_num_threads(threads)
    for found in run_world(on_ranks, num_ranks):
        for name, values in found.items():
            assert torch.equal(values, alone), name
