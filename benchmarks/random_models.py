"""Transformers with random weights that are the same in every process."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from torch import Tensor

TEXT_DIM = 64


def random_wan(
    sizes: tuple[int, int, int, int], latent_shape: tuple[int, int, int], text_tokens: int
) -> tuple[WanTransformer3DModel, Tensor, list[Tensor]]:
    """Return a Wan transformer, latents [1, 16, F, h, w], and two prompt embeddings [1, T, text_dim].

    sizes: heads, head dim, layers, feed-forward.
    """
    heads, head_dim, layers, ffn = sizes
    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        ffn_dim=ffn,
        text_dim=TEXT_DIM,
        rope_max_seq_len=64,
    )
    latents = torch.randn(1, 16, *latent_shape)
    return module.eval(), latents, [torch.randn(1, text_tokens, TEXT_DIM) for _ in range(2)]


def random_hunyuan_video(
    sizes: tuple[int, int, int, int], latent_shape: tuple[int, int, int], text_tokens: int
) -> tuple[HunyuanVideoTransformer3DModel, Tensor, tuple[Tensor, ...]]:
    """Return a HunyuanVideo transformer, latents [1, 16, F, h, w], and a prompt's parts for its forward.

    sizes: heads, head dim, double blocks, single blocks.
    """
    heads, head_dim, double, single = sizes
    torch.manual_seed(0)
    module = HunyuanVideoTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=double,
        num_single_layers=single,
        num_refiner_layers=1,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        rope_axes_dim=(head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8),
    )
    prompt = (
        torch.randn(1, text_tokens, TEXT_DIM),
        torch.ones(1, text_tokens),
        torch.randn(1, TEXT_DIM),
        torch.tensor([6000.0]),
    )
    return module.eval(), torch.randn(1, 16, *latent_shape), prompt
