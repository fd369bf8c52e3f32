"""Sizes of a diffusion transformer, and the operations and memory that they imply. Does not import torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import prod

from paradit.attention.patterns import FULL, Pattern
from paradit.models.vae_spec import FP32_BYTES


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """Sizes of one diffusion transformer, with diffusers' names for those that diffusers has."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int
    patch_size: tuple[int, int, int]
    in_channels: int
    out_channels: int
    text_dim: int
    freq_dim: int
    max_positions: int
    """Number of tokens along one axis of the video that the rotary tables cover."""
    num_parameters: int
    """Exact number of parameters of the diffusers class with this configuration."""
    image_dim: int = 0
    """Number of values of an embedded token of a picture that cross-attention reads beside the text; 0 if it
    reads no picture."""
    images: int = 0
    """Number of pictures that cross-attention reads beside the text."""
    image_tokens: int = 0
    """Number of tokens of all these pictures together."""

    @property
    def width(self) -> int:
        """Number of channels of a token: heads x head dim."""
        return self.num_attention_heads * self.attention_head_dim

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Count the floating-point operations of one forward pass over one video (a multiply-add is two).

        Counts matrix products only. The text's keys and values are computed once per request: see
        `context_flops`. timesteps: the number of time embeddings, one or, with `ModelSpec.expand_timesteps`,
        one for each frame of tokens.
        """
        width = self.width
        # Projections of cross-attention: q and output. Those of k and v are in `context_flops`.
        cross_attention = self.num_layers * 4 * tokens * width**2 + self.cross_attention_flops(
            tokens, text_tokens
        )
        feed_forward = 4 * tokens * width * self.ffn_dim
        patch = prod(self.patch_size)
        # Patch embedding and head.
        ends = 2 * tokens * width * patch * (self.in_channels + self.out_channels)
        # The time embedder's two layers, and the projection to six rows of modulation.
        time = 2 * timesteps * (self.freq_dim * width + width**2 + 6 * width**2)
        # Projections of self-attention: q, k, v and output.
        projections = 8 * tokens * width**2
        blocks = self.num_layers * (projections + feed_forward) + cross_attention
        return blocks + self.self_attention_flops(tokens, text_tokens) + ends + time

    def pattern(self, layer: int) -> Pattern | None:  # noqa: ARG002
        """Return which keys each query sees in a layer's self-attention; None: all."""
        return None

    @cached_property
    def patterns(self) -> Counter[Pattern]:
        """Number of layers with each pattern; `FULL` stands for layers without one."""
        return Counter(self.pattern(layer) or FULL for layer in range(self.num_layers))

    @property
    def sparse_patterns(self) -> frozenset[Pattern]:
        """Patterns of the sparse layers, in which a query does not see all keys."""
        return frozenset(self.patterns) - {FULL}

    def layer_costs(self, tokens: int, text_tokens: int) -> tuple[float, ...]:
        """Return the operations of each layer in one forward pass, as multiples of the cheapest layer's."""
        rows = self.attention_rows(tokens, text_tokens)
        others = self.flops(tokens, text_tokens) - self.self_attention_flops(tokens, text_tokens)
        by_pattern = {
            pattern: others / self.num_layers + 4 * self.width * pattern.pairs(rows)
            for pattern in self.patterns
        }
        least = min(by_pattern.values())
        return tuple(by_pattern[self.pattern(layer) or FULL] / least for layer in range(self.num_layers))

    def attention_rows(self, tokens: int, text_tokens: int) -> int:  # noqa: ARG002
        """Return the number of queries, and of keys, of a head in self-attention."""
        return tokens

    def self_attention_flops(self, tokens: int, text_tokens: int) -> int:
        """Count the floating-point operations of all layers' self-attention, except its linear projections.

        They grow with the square of the number of tokens. In sparse layers, only the pairs of queries and
        keys of the layer's pattern are computed.
        """
        rows = self.attention_rows(tokens, text_tokens)
        pairs = sum(count * pattern.pairs(rows) for pattern, count in self.patterns.items())
        return 4 * pairs * self.width

    def cross_attention_flops(self, tokens: int, text_tokens: int) -> int:
        """Count the floating-point operations of all layers' cross-attention, except its linear projections.

        They grow with the product of the numbers of video tokens and of text and image tokens.
        """
        return self.num_layers * 4 * tokens * (text_tokens + self.image_tokens) * self.width

    def context_flops(self, text_tokens: int) -> int:
        """Count the floating-point operations that one prompt needs once per request.

        They are those of the embedders of text and pictures, and of the keys and values in every layer.
        """
        embedders = 2 * text_tokens * (self.text_dim * self.width + self.width**2)
        embedders += 2 * self.image_tokens * (self.image_dim**2 + self.image_dim * self.width)
        return embedders + self.num_layers * 4 * (text_tokens + self.image_tokens) * self.width**2

    def cached_values(self, text_tokens: int) -> int:
        """Count the values cached for a prompt while denoising: each layer's keys and values.

        They are those of its text and of pictures.
        """
        return 2 * self.num_layers * (text_tokens + self.image_tokens) * self.width

    def activation_bytes(self, tokens: int, text_tokens: int, dtype_bytes: int) -> int:  # noqa: ARG002
        """Estimate the bytes of working memory of the transformer blocks for one video.

        dtype_bytes: the size of one value of the compute dtype.
        """
        # Memory peaks in RoPE or in the feed-forward. RoPE holds the embedded tokens, the residual, q, k, v,
        # two fp32 copies, and the rounded result. The feed-forward holds the embedded tokens, the residual
        # before and after attention, the attended and the normed values, and the inner activation before and
        # after its nonlinearity.
        rounded = dtype_bytes if dtype_bytes < FP32_BYTES else 0
        rotating = self.width * (5 * dtype_bytes + 2 * FP32_BYTES + rounded)
        feed_forward = (5 * self.width + 2 * self.ffn_dim) * dtype_bytes
        return tokens * (max(rotating, feed_forward) + self.rotary_bytes)

    @property
    def rotary_bytes(self) -> int:
        """Number of bytes of a token's rotations, for RoPE."""
        return 2 * self.attention_head_dim * FP32_BYTES
