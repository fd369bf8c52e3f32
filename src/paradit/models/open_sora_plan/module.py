"""Transformers of Open-Sora-Plan v1.3 as torch modules, with the parameters of the published checkpoints.

The classes have their names from published configurations. `transformer` calls their parts.
"""
# ruff: noqa: ARG002 (diffusers takes the arguments of __init__ as the configuration's fields)

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import PixArtAlphaTextProjection
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormSingle
from torch import Tensor, nn

EPS = 1e-6
"""Number that layer norms add to the variance."""


class PatchEmbed(nn.Module):
    """Linear map of the square patches of each latent frame to tokens."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the tokens [B, S, width] of latents [B, C, F, H, W]: by frame, then row, then column."""
        by_frame = self.proj(latents.transpose(1, 2).flatten(0, 1))  # [B * F, width, h, w]
        tokens: Tensor = (
            by_frame.unflatten(0, latents.shape[::2][:2]).flatten(3).transpose(2, 3).flatten(1, 2)
        )
        return tokens


class Attention(nn.Module):
    """Projections of an attention, whose inputs are as wide as its output; queries and keys have no norm."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])


class TransformerBlock(nn.Module):
    """Modules of a transformer block: self-attention, cross-attention to the text, and feed-forward."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn1 = Attention(heads, width)
        self.attn2 = Attention(heads, width)
        self.norm2 = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.ff = FeedForward(width, activation_fn="gelu-approximate")
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)


class OpenSoraT2V_v1_3(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both have config_name
    """Transformer that makes videos from text."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        num_attention_heads: int = 24,
        attention_head_dim: int = 96,
        in_channels: int = 8,
        out_channels: int = 8,
        num_layers: int = 32,
        patch_size: int = 2,
        caption_channels: int = 4096,
        interpolation_scale_t: float = 1.0,
        interpolation_scale_h: float = 1.0,
        interpolation_scale_w: float = 1.0,
        sparse1d: bool = True,
        sparse_n: int = 4,
        # Published configurations have these, too. Here their values are fixed (`spec.TransformerConfig`), or
        # they have no effect.
        patch_size_t: int = 1,
        cross_attention_dim: int | None = None,
        attention_bias: bool = True,
        activation_fn: str = "gelu-approximate",
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        norm_elementwise_affine: bool = False,
        norm_eps: float = EPS,
        vae_scale_factor_t: int = 4,
        dropout: float = 0.0,
        sample_size_t: int | None = None,
        sample_size_h: int | None = None,
        sample_size_w: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        width = num_attention_heads * attention_head_dim
        self.pos_embed = PatchEmbed(in_channels, width, patch_size)
        self.caption_projection = PixArtAlphaTextProjection(caption_channels, width)  # type: ignore[no-untyped-call]
        self.adaln_single = AdaLayerNormSingle(width)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(num_attention_heads, width) for _ in range(num_layers)]
        )
        self.norm_out = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, patch_size**2 * out_channels)

    def embed(self, latents: Tensor) -> Tensor:
        """Return the tokens [B, S, width] of latents [B, C, F, H, W]."""
        tokens: Tensor = self.pos_embed(latents)
        return tokens


class OpenSoraInpaint_v1_3(OpenSoraT2V_v1_3):
    """Transformer that makes videos from text and from some of their frames.

    Its latents have further channels: the encoded frames, then a mask with a channel for each frame that a
    latent frame covers.
    """

    @wraps(OpenSoraT2V_v1_3.__init__)  # type: ignore[misc]  # so that diffusers sees the fields of the configuration
    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        patch, width = self.config["patch_size"], self.proj_out.in_features

        def embedder(channels: int) -> nn.ModuleList:
            return nn.ModuleList([PatchEmbed(channels, width, patch), nn.Linear(width, width, bias=False)])

        self.pos_embed_masked_hidden_states = embedder(self.config["in_channels"])
        self.pos_embed_mask = embedder(self.config["vae_scale_factor_t"])

    def embed(self, latents: Tensor) -> Tensor:
        """Return the tokens [B, S, width] of latents [B, C, F, H, W] with all their channels."""
        channels = self.config["in_channels"]
        parts = [channels, channels, self.config["vae_scale_factor_t"]]
        own, frames, mask = torch.split(latents, parts, dim=1)
        tokens = super().embed(own)
        for (patches, linear), part in (
            (self.pos_embed_masked_hidden_states, frames),
            (self.pos_embed_mask, mask),
        ):
            tokens = tokens + linear(patches(part))
        return tokens
