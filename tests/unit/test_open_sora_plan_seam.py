"""The transformers of Open-Sora-Plan v1.3: their published parameters, and their parts against formulas."""

from typing import Any

import pytest
import torch

import small_open_sora_plan
from paradit.attention.patterns import Pattern
from paradit.models.open_sora_plan.module import OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3
from paradit.models.open_sora_plan.transformer import OpenSoraPlanTransformer
from seam_inputs import grid_of
from tiny import forward
from token_shares import forward_in_shares

# Tokens: 24, 75, 6 and 175; not multiples of 16, so that groups are of different sizes.
SHAPES = [(1, 2, 4, 12), (2, 3, 10, 10), (1, 1, 4, 6), (1, 5, 10, 14)]
"""Shapes of latents: (batch, frames, height, width)."""
LINEARS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
           "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")  # fmt: skip


def seam(model: Any, latents: Any, timestep: Any, prompt: Any) -> Any:
    cut = OpenSoraPlanTransformer(model)
    tokens = cut.embed(latents, timestep, cut.context(*prompt), cut.layout(grid_of(latents)))
    return cut.unpatchify(forward(cut, tokens), tokens.layout)


def with_bias(name: str, *shape: int) -> dict[str, list[int]]:
    return {f"{name}.weight": list(shape), f"{name}.bias": [shape[0]]}


def published_parameters() -> dict[str, list[int]]:
    """Return the shape of every parameter in the published checkpoint for text, by name."""
    embedder = "adaln_single.emb.timestep_embedder"
    expected = {
        **with_bias("pos_embed.proj", 2304, 8, 2, 2),
        **with_bias("caption_projection.linear_1", 2304, 4096),
        **with_bias("caption_projection.linear_2", 2304, 2304),
        **with_bias(f"{embedder}.linear_1", 2304, 256),
        **with_bias(f"{embedder}.linear_2", 2304, 2304),
        **with_bias("adaln_single.linear", 13824, 2304),
        "scale_shift_table": [2, 2304],
        **with_bias("proj_out", 32, 2304),
    }
    for layer in range(32):
        block = f"transformer_blocks.{layer}"
        expected[f"{block}.scale_shift_table"] = [6, 2304]
        for name in LINEARS:
            expected |= with_bias(f"{block}.{name}", 2304, 2304)
        expected |= with_bias(f"{block}.ff.net.0.proj", 9216, 2304)
        expected |= with_bias(f"{block}.ff.net.2", 2304, 9216)
    return expected


def test_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        model, from_frames = OpenSoraT2V_v1_3(), OpenSoraInpaint_v1_3()
    assert {name: list(p.shape) for name, p in model.state_dict().items()} == published_parameters()
    assert sum(p.numel() for p in model.parameters()) == 2_771_981_600
    assert {name: list(p.shape) for name, p in from_frames.state_dict().items()} == {
        **published_parameters(),
        **with_bias("pos_embed_masked_hidden_states.0.proj", 2304, 8, 2, 2),
        "pos_embed_masked_hidden_states.1.weight": [2304, 2304],
        **with_bias("pos_embed_mask.0.proj", 2304, 4, 2, 2),
        "pos_embed_mask.1.weight": [2304, 2304],
    }


def test_all_layers_but_four_are_sparse() -> None:
    model = small_open_sora_plan.transformer(heads=1, layers=32)
    patterns = [site.pattern for site in OpenSoraPlanTransformer(model).sites]
    assert [layer for layer, pattern in enumerate(patterns) if pattern is None] == [0, 1, 30, 31]
    assert patterns[2:30] == [Pattern(4), Pattern(4, run=4)] * 14


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("takes_frames", [False, True])
@torch.no_grad()
def test_equals_masked_attention(takes_frames: bool, shape: tuple[int, ...]) -> None:
    model = small_open_sora_plan.transformer(takes_frames=takes_frames)
    given = small_open_sora_plan.inputs(model, shape, lengths=(9, 4)[-shape[0] :])
    expected = small_open_sora_plan.plain(model, *given)
    # Measured: 1.5e-6, of values up to 5.
    torch.testing.assert_close(seam(model, *given), expected, rtol=0, atol=5e-6)
    assert (
        seam(small_open_sora_plan.transformer(takes_frames=takes_frames, sparse1d=False), *given) != expected
    ).any()


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = small_open_sora_plan.transformer()
    latents, timestep, (embeds, mask) = small_open_sora_plan.inputs(model, SHAPES[1], lengths=(6, 6))
    cut = embeds[:, :6], mask[:, :6]
    assert torch.equal(seam(model, latents, timestep, (embeds, mask)), seam(model, latents, timestep, cut))


@torch.no_grad()
def test_prompts_of_different_lengths_share_one_embedding() -> None:
    """Guidance branches share one embedding of the latents, one after the other or in one batch."""
    model = small_open_sora_plan.transformer()
    cut = OpenSoraPlanTransformer(model)
    latents, timestep, first = small_open_sora_plan.inputs(model, SHAPES[0], lengths=(7,))
    _, _, second = small_open_sora_plan.inputs(model, SHAPES[0], lengths=(3,))
    contexts = [cut.context(*prompt) for prompt in (first, second)]
    tokens = cut.embed(latents, timestep, contexts[0], cut.layout(grid_of(latents)))
    other = forward(cut, cut.branch(tokens, contexts[1]))
    assert torch.equal(cut.unpatchify(other, tokens.layout), seam(model, latents, timestep, second))
    both = cut.unpatchify(forward(cut, cut.branch(tokens, cut.join(contexts))), tokens.layout)
    expected = torch.cat([seam(model, latents, timestep, prompt) for prompt in (first, second)])
    torch.testing.assert_close(both, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("cuts", [[3], [1, 1, 8], [24]])
@torch.no_grad()
def test_sharded_tokens_give_the_same_video(cuts: Any) -> None:
    """Tokens are divided into shares of any size, even zero, as on ranks."""
    model = small_open_sora_plan.transformer(sparse1d=False)
    cut = OpenSoraPlanTransformer(model)
    latents, timestep, prompt = small_open_sora_plan.inputs(model, SHAPES[0], lengths=(5,))
    tokens = cut.embed(latents, timestep, cut.context(*prompt), cut.layout(grid_of(latents)))
    expected = seam(model, latents, timestep, prompt)
    result = cut.unpatchify(forward_in_shares(cut, tokens, cuts), tokens.layout)
    torch.testing.assert_close(result, expected, atol=2e-6, rtol=0)


@torch.no_grad()
def test_project_and_finish_compile_in_one_piece() -> None:
    model = small_open_sora_plan.transformer()
    cut = OpenSoraPlanTransformer(model)
    latents, timestep, prompt = small_open_sora_plan.inputs(model, SHAPES[0], lengths=(5,))
    tokens = cut.embed(latents, timestep, cut.context(*prompt), cut.layout(grid_of(latents)))

    def block(tokens: Any) -> Any:
        value, _key, query = cut.blocks[0].project(tokens)
        return cut.blocks[0].finish(tokens, value + query).hidden_states

    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.equal(compiled(tokens), block(tokens))
