"""Transformers with sparse layers, whose tokens are dealt to ranks by group."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attention_in_memory import chunked, run_together, world
from made_up import DEPTH, made_up, projected, random_tokens, random_weights
from paradit.attention.base import Layout, Projection, Site, Wait
from paradit.attention.dealt import DealtByGroup
from paradit.attention.local_attention import local, sdpa
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.distributed.mesh import Mesh
from paradit.distributed.shares import Shares
from paradit.distributed.world import World
from paradit.models.open_sora_plan.transformer import OpenSoraPlanTransformer
from paradit.models.protocol import Block, Tokens, of_any_family
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.parallel.run_blocks import run, through_blocks, through_dealt_blocks
from paradit.parallel.sequence_parallel import SequenceParallel
from paradit.testing import run_world
from small_open_sora_plan import inputs, transformer
from threads import one_thread

HEADS = 16
SKIPPED, RUNS = Pattern(groups=4), Pattern(groups=4, run=4)
TOKENS = 256
PATTERNS = (None, SKIPPED, RUNS, SKIPPED, RUNS, None)
"""Patterns of the layers: full attention at both ends, and sparse attention between them."""


class Attending(Block[Tokens]):
    """Transformer block that only attends, with random projections."""

    def __init__(self, layer: int, pattern: Pattern | None) -> None:
        self.site = Site(layer, pattern=pattern)
        self.weights = random_weights(layer, 3, HEADS)

    def project(self, tokens: Tokens) -> Projection:
        return projected(tokens.hidden_states, self.weights)

    def finish(self, tokens: Tokens, attended: Tensor) -> Tokens:
        return replace(tokens, hidden_states=tokens.hidden_states + attended.flatten(2))


class Idle(Attending):
    """Transformer block that only attends, with its hidden states as queries, keys and values."""

    def project(self, tokens: Tokens) -> Projection:
        for _ in self.weights:
            yield tokens.hidden_states.unflatten(2, (HEADS, DEPTH))


def sparse() -> Any:
    return made_up(HEADS, [Attending(*layer) for layer in enumerate(PATTERNS)])


def tokens(number: int) -> Tokens:
    return random_tokens(number, HEADS, batch=2)


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
    return run(through_blocks(sparse().blocks, tokens(number), masked)).hidden_states


def sent(transport: Any) -> int:
    return transport.bytes_sent + sum(map(sent, transport.teams))


@pytest.mark.parametrize("num_ranks", [2, 4, 8, 12])
@pytest.mark.parametrize(("number", "within"), [(3, 1e-5), (12, 5e-5), (64, 1e-5), (77, 1e-5)])
def test_on_ranks_in_memory(num_ranks: int, number: int, within: float) -> None:
    """Equal to one process, bit for bit, and to masked attention within rounding; values reach 16."""
    shares = Shares.equal(number, HEADS, num_ranks)
    works: list[Any] = []
    deals = []
    for transport in world(num_ranks):
        dealt = DealtByGroup(shares, transport, sdpa)
        deals.append(dealt.by_layer(sparse().sites, torch.device("cpu")))
        works.append(through_dealt_blocks(sparse().blocks, tokens(number), deals[-1]))
    found = torch.full_like(tokens(number).hidden_states, torch.nan)
    done: list[Any] = run_together(works)
    for rank, deal in enumerate(deals):
        found[:, deal[-1].held] = done[rank].hidden_states
    assert torch.equal(found, run(through_blocks(sparse().blocks, tokens(number), local())).hidden_states)
    torch.testing.assert_close(found, expected(number), rtol=1e-5, atol=within)


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
    with one_thread():
        alone = predictions(LocalPredictor())
    for found in run_world(on_ranks, num_ranks):
        for name, values in found.items():
            assert torch.equal(values, alone), name
