"""A Wan transformer with random weights, the same in every process that makes it."""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

TEXT_DIM = 64


def random_wan(
    sizes: tuple[int, int, int, int], latent_shape: tuple[int, int, int], text_tokens: int
) -> tuple[WanTransformer3DModel, Tensor, list[Tensor]]:
    """The transformer, latents [1, 16, F, h, w], and two prompts' embeddings [1, T, text_dim].

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
