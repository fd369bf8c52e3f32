"""WanTransformer3DModel cut into blocks: its forward equals the class's own, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from allocated import allocated_peak
from paradit.models.wan.transformer import WanTransformer
from seam_inputs import grid_of, wan_inputs
from tiny import VARIANTS, forward, in_bf16, transformer
from token_shares import forward_in_shares

SHAPES = [(1, 2, 4, 6), (2, 3, 2, 10), (1, 1, 6, 6)]
"""Shapes of latents: (batch, frames, height, width)."""


def seam(model: Any, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None) -> Any:
    wan = WanTransformer(model)
    tokens = wan.embed(latents, timestep, wan.context(text, image), wan.layout(grid_of(latents)))
    return wan.unpatchify(forward(wan, tokens), tokens.layout)


def own(model: Any, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor | None = None) -> Any:
    return model(latents, timestep, text, encoder_hidden_states_image=image, return_dict=False)[0]


@pytest.fixture(params=["fp32", "bf16"])
def in_dtype(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return (lambda model: model) if request.param == "fp32" else lambda model: in_bf16(model, tmp_path)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_equals_forward(variant: str, shape: tuple[int, ...], in_dtype: Callable[[Any], Any]) -> None:
    model = in_dtype(transformer(variant))
    latents, text = wan_inputs(model, shape)
    timestep = torch.tensor([711, 20])[: shape[0]]
    assert torch.equal(seam(model, latents, timestep, text), own(model, latents, timestep, text))


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_equals_forward_with_a_timestep_for_each_token(
    shape: tuple[int, ...], in_dtype: Callable[[Any], Any]
) -> None:
    model = in_dtype(transformer("wan22_ti2v"))
    latents, text = wan_inputs(model, shape)
    batch, frames, height, width = shape
    timestep = 1000 * torch.rand(batch, frames * height * width // 4)
    assert torch.equal(seam(model, latents, timestep, text), own(model, latents, timestep, text))


@pytest.mark.parametrize("shape", [*SHAPES, (2, 20, 2, 4)])
@torch.no_grad()
def test_equals_forward_with_a_timestep_for_each_frame(
    shape: tuple[int, ...], in_dtype: Callable[[Any], Any]
) -> None:
    """The module gets a timestep for each token. Ranks look up the same rows."""
    model = in_dtype(transformer("wan22_ti2v"))
    latents, text = wan_inputs(model, shape)
    batch, frames, height, width = shape
    by_frame = 1000 * torch.rand(batch, frames)
    by_token = by_frame.repeat_interleave(height * width // 4, dim=1)
    expected = own(model, latents, by_token, text)
    assert torch.equal(seam(model, latents, by_frame, text), expected)
    assert torch.equal(seam(model, latents, by_token, text), expected)


@pytest.mark.parametrize("by_token", [False, True])
@torch.no_grad()
def test_a_rank_that_resumes_reads_the_same_rows(by_token: bool) -> None:
    wan = WanTransformer(transformer("wan22_ti2v"))
    latents, text = wan_inputs(wan.module, (1, 3, 4, 6))
    timestep = torch.tensor([[0.0, 500.0, 500.0]])
    given = timestep.repeat_interleave(6, dim=1) if by_token else timestep
    layout, context = wan.layout((3, 4, 6)), wan.context(text)
    tokens = wan.embed(latents, given, context, layout).shard(5, 8)
    resumed = wan.resume(tokens.changing, timestep, context, layout.shard(5, 8))
    one, other = tokens.modulation, resumed.modulation
    assert torch.equal(one.rows[one.index], other.rows[other.index])
    assert torch.equal(tokens.layout.rope.positions, resumed.layout.rope.positions)


@torch.no_grad()
def test_memory_of_a_timestep_for_each_frame() -> None:
    """It is a row for each frame, and while a layer runs one shift, scale or gate of every token."""
    model = transformer("wan22_ti2v")
    wan, width = WanTransformer(model), model.config.num_attention_heads * model.config.attention_head_dim
    latents, text = wan_inputs(model, (1, 20, 16, 16))
    context, layout = wan.context(text), wan.layout(grid_of(latents))

    def peak(timestep: Tensor) -> int:
        tokens = wan.embed(latents, timestep, context, layout)
        value, _key, query = wan.blocks[0].project(tokens)
        finished = allocated_peak(lambda: wan.blocks[0].finish(tokens, value + query))
        return max(finished, allocated_peak(lambda: wan.head(tokens)))

    modulation = wan.embed(latents, 1000 * torch.rand(1, 20), context, layout).modulation
    assert modulation.rows.shape == (20, 6, width)
    assert modulation.temb.shape == (20, width)
    of_all_tokens, of_the_table = 1280 * width * 4, 20 * 6 * width * 4
    more = peak(1000 * torch.rand(1, 20)) - peak(torch.tensor([500.0]))
    assert more <= of_all_tokens + of_the_table


@torch.no_grad()
def test_equals_forward_with_an_image(in_dtype: Callable[[Any], Any]) -> None:
    model = in_dtype(transformer("i2v"))
    latents, text = wan_inputs(model, (2, 2, 4, 6), text_length=512)
    image = torch.randn(2, 5, model.config.image_dim, dtype=model.dtype)
    timestep = torch.tensor([711, 20])
    assert torch.equal(
        seam(model, latents, timestep, text, image), own(model, latents, timestep, text, image)
    )
    with pytest.raises(ValueError, match="image_embeds"):
        WanTransformer(model).context(text)


@torch.no_grad()
def test_equals_forward_with_fused_projections() -> None:
    model = transformer("i2v")
    model.fuse_qkv_projections()
    latents, text = wan_inputs(model, (1, 2, 4, 6), text_length=512)
    image = torch.randn(1, 5, model.config.image_dim)
    timestep = torch.tensor([711])
    assert torch.equal(
        seam(model, latents, timestep, text, image), own(model, latents, timestep, text, image)
    )


@torch.no_grad()
def test_leaves_the_module_as_it_was() -> None:
    model = transformer()
    keys = list(model.state_dict())
    wan = WanTransformer(model)
    latents, text = wan_inputs(model, SHAPES[0])
    seam(model, latents, torch.tensor([5]), text)
    assert list(wan.module.state_dict()) == keys
    assert wan.module is model


@torch.no_grad()
def test_prompts_share_one_embedding() -> None:
    model = transformer()
    wan = WanTransformer(model)
    latents, first = wan_inputs(model, SHAPES[0])
    _, second = wan_inputs(model, SHAPES[0])
    timestep = torch.tensor([500])
    tokens = wan.embed(latents, timestep, wan.context(first), wan.layout(grid_of(latents)))
    other = replace(tokens, context=wan.context(second))
    prediction = wan.unpatchify(forward(wan, other), tokens.layout)
    assert torch.equal(prediction, own(model, latents, timestep, second))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("cuts", [[3], [1, 1, 8], [12]])
@torch.no_grad()
def test_sharded_tokens_give_the_same_video(per_token: bool, cuts: Any) -> None:
    """Tokens are divided into shares of any size, even zero, each with all keys, as on ranks."""
    model = transformer("wan22_ti2v")
    wan = WanTransformer(model)
    latents, text = wan_inputs(model, (1, 2, 4, 6))
    timestep = 1000 * torch.rand(1, 12) if per_token else torch.tensor([711])
    tokens = wan.embed(latents, timestep, wan.context(text), wan.layout((2, 4, 6)))
    result = wan.unpatchify(forward_in_shares(wan, tokens, cuts), tokens.layout)
    torch.testing.assert_close(result, own(model, latents, timestep, text), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rope_at_any_positions() -> None:
    wan = WanTransformer(transformer())
    rope = wan.layout((3, 4, 6)).rope
    order = torch.randperm(len(rope.positions))
    moved = wan.rope_tables().at(rope.positions[order])
    x = torch.randn(2, len(order), 2, 32)
    assert torch.equal(moved.apply(x[:, order]), rope.apply(x)[:, order])


@pytest.mark.parametrize("per_token", [False, True])
@torch.no_grad()
def test_project_and_finish_compile_in_one_piece(per_token: bool) -> None:
    model = transformer()
    wan = WanTransformer(model)
    latents, text = wan_inputs(model, SHAPES[0])
    timestep = 1000 * torch.rand(1, 12) if per_token else torch.tensor([711])
    tokens = wan.embed(latents, timestep, wan.context(text), wan.layout(grid_of(latents)))

    def block(tokens: Any) -> Any:
        value, _key, query = wan.blocks[0].project(tokens)
        return wan.blocks[0].finish(tokens, value + query).hidden_states

    compiled = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.equal(compiled(tokens), block(tokens))
