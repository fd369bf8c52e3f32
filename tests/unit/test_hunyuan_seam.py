"""HunyuanVideoTransformer3DModel cut into blocks: its forward equals the class's own.

The values are equal bit for bit if the text has no padding. If it has, the class masks the padding and the
cut model removes it; these are different operations, so values differ by rounding.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from paradit.config.errors import InputError
from paradit.models.hunyuan_video.transformer import HunyuanVideoTransformer
from seam_inputs import grid_of, hunyuan_inputs
from tiny import TEXT_DIM, forward, hunyuan_transformer, in_bf16
from token_shares import forward_in_shares

SHAPES = [(1, 2, 4, 6), (2, 3, 2, 10), (1, 1, 6, 6), (1, 5, 10, 14)]
"""Shapes of latents: (batch, frames, height, width)."""


def padded(prompt: tuple[Tensor, ...], padding: int = 7) -> Any:
    """Return the prompt with meaningless padding tokens at its end."""
    embeds, mask, *others = prompt
    noise = 10 * torch.randn(len(embeds), padding, TEXT_DIM, dtype=embeds.dtype)
    return (
        torch.cat([embeds, noise], dim=1),
        torch.cat([mask, torch.zeros_like(noise[..., 0])], dim=1),
        *others,
    )


def seam(model: Any, latents: Tensor, timestep: Tensor, prompt: tuple[Tensor, ...]) -> Any:
    hunyuan = HunyuanVideoTransformer(model)
    tokens = hunyuan.embed(latents, timestep, hunyuan.context(*prompt), hunyuan.layout(grid_of(latents)))
    return hunyuan.unpatchify(forward(hunyuan, tokens), tokens.layout)


def own(model: Any, latents: Tensor, timestep: Tensor, prompt: tuple[Tensor, ...]) -> Any:
    return model(latents, timestep, *prompt, return_dict=False)[0]


@pytest.fixture(params=["fp32", "bf16"])
def in_dtype(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return (lambda model: model) if request.param == "fp32" else lambda model: in_bf16(model, tmp_path)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("heads", "guidance_embeds"), [(2, True), (3, False)])
@torch.no_grad()
def test_equals_forward(
    heads: int, guidance_embeds: bool, shape: tuple[int, ...], in_dtype: Callable[[Any], Any]
) -> None:
    model = in_dtype(hunyuan_transformer(heads, guidance_embeds))
    given = hunyuan_inputs(model, shape)
    assert torch.equal(seam(model, *given), own(model, *given))


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_padding_changes_nothing(shape: tuple[int, ...], in_dtype: Callable[[Any], Any]) -> None:
    model = in_dtype(hunyuan_transformer())
    latents, timestep, prompt = hunyuan_inputs(model, shape)
    longer = padded(prompt)
    with_padding = seam(model, latents, timestep, longer)
    assert torch.equal(with_padding, seam(model, latents, timestep, prompt))
    # Measured: 7e-7 in fp32, 0.008 in bf16, of values up to 3.
    tolerance = 2e-6 if model.dtype == torch.float32 else 0.03
    expected = own(model, latents, timestep, longer)
    torch.testing.assert_close(with_padding, expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_guidance_is_read_where_it_is_embedded() -> None:
    model = hunyuan_transformer()
    latents, timestep, (*prompt, _) = hunyuan_inputs(model, SHAPES[0])
    low, high = (seam(model, latents, timestep, (*prompt, torch.tensor([g]))) for g in (1000.0, 9000.0))
    assert not torch.equal(low, high)
    model = hunyuan_transformer(guidance_embeds=False)
    given = latents, timestep, tuple(prompt)  # without a guidance embedding
    assert torch.equal(seam(model, *given), own(model, *given))


@torch.no_grad()
def test_prompts_of_a_batch_have_one_length() -> None:
    hunyuan = HunyuanVideoTransformer(hunyuan_transformer())
    _, _, (embeds, mask, *others) = hunyuan_inputs(hunyuan.module, SHAPES[1])
    for wrong in ([[1, 1, 0], [1, 0, 0]], [[0, 1, 1], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]]):
        with pytest.raises(ValueError, match=r"prompts of ., . tokens"):
            hunyuan.context(embeds[:, :3], torch.tensor(wrong), *others)
    assert hunyuan.context(embeds, mask, *others).batch == 2


@torch.no_grad()
def test_leaves_the_module_as_it_was() -> None:
    model = hunyuan_transformer()
    keys = list(model.state_dict())
    seam(model, *hunyuan_inputs(model, SHAPES[0]))
    assert list(model.state_dict()) == keys
    assert HunyuanVideoTransformer(model).module is model


@torch.no_grad()
def test_prompts_share_one_embedding() -> None:
    """Guidance branches share one embedding of the latents, one after the other or in one batch."""
    model = hunyuan_transformer()
    hunyuan = HunyuanVideoTransformer(model)
    latents, timestep, first = hunyuan_inputs(model, SHAPES[0])
    _, _, second = hunyuan_inputs(model, SHAPES[0])
    contexts = [hunyuan.context(*prompt) for prompt in (first, second)]
    tokens = hunyuan.embed(latents, timestep, contexts[0], hunyuan.layout(tuple(latents.shape[2:])))
    other = forward(hunyuan, hunyuan.branch(tokens, contexts[1]))
    assert torch.equal(hunyuan.unpatchify(other, tokens.layout), own(model, latents, timestep, second))
    both = forward(hunyuan, hunyuan.branch(tokens, hunyuan.join(contexts)))
    expected = torch.cat([own(model, latents, timestep, prompt) for prompt in (first, second)])
    torch.testing.assert_close(hunyuan.unpatchify(both, tokens.layout), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("cuts", [[3], [1, 1, 8], [12]])
@torch.no_grad()
def test_sharded_tokens_give_the_same_video(cuts: Any) -> None:
    """Tokens are divided into shares of any size, even zero, each with all the text, as on ranks."""
    model = hunyuan_transformer()
    hunyuan = HunyuanVideoTransformer(model)
    latents, timestep, prompt = hunyuan_inputs(model, (1, 2, 4, 6))
    tokens = hunyuan.embed(latents, timestep, hunyuan.context(*prompt), hunyuan.layout((2, 4, 6)))
    assert tokens.layout.num_replicated == 9
    result = hunyuan.unpatchify(forward_in_shares(hunyuan, tokens, cuts), tokens.layout)
    torch.testing.assert_close(result, own(model, latents, timestep, prompt), atol=2e-6, rtol=0)


@torch.no_grad()
def test_the_text_is_not_rotated() -> None:
    hunyuan = HunyuanVideoTransformer(hunyuan_transformer())
    layout = hunyuan.layout((3, 4, 6))
    assert layout.num_replicated == 0
    extended = layout.with_text(5).with_text(4)
    assert (extended.num_replicated, len(extended.rope.positions)) == (4, 18 + 4)
    x = torch.randn(1, 22, 2, 32)
    rotated = extended.rope.apply(x)
    assert torch.equal(rotated[:, 18:], x[:, 18:])
    assert torch.equal(rotated[:, :18], layout.rope.apply(x[:, :18]))


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_project_and_finish_compile_in_one_piece(layer: Any) -> None:
    model = hunyuan_transformer()
    hunyuan = HunyuanVideoTransformer(model)
    latents, timestep, prompt = hunyuan_inputs(model, SHAPES[0])
    layout = hunyuan.layout(tuple(latents.shape[2:]))
    tokens = hunyuan.embed(latents, timestep, hunyuan.context(*prompt), layout)

    def block(tokens: Any) -> Any:
        value, _key, query = hunyuan.blocks[layer].project(tokens)
        after = hunyuan.blocks[layer].finish(tokens, value + query)
        return after.hidden_states, after.encoder_hidden_states

    compiled = torch.compile(block, backend="eager", fullgraph=True)
    for ours, expected in zip(compiled(tokens), block(replace(tokens)), strict=True):
        assert torch.equal(ours, expected)


def test_refuses_a_transformer_that_takes_an_image() -> None:
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(
            num_layers=1, num_single_layers=1, image_condition_type="token_replace"
        )
    with pytest.raises(InputError, match="token_replace"):
        HunyuanVideoTransformer(model)
