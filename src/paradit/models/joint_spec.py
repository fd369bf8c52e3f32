"""Costs of a transformer with joint attention, whose blocks process text and video tokens together.

Does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from paradit.models.transformer_spec import TransformerSpec


@dataclass(frozen=True, kw_only=True)
class JointTransformerSpec(TransformerSpec):
    """Sizes of a transformer in which text tokens go through the blocks together with the video's tokens."""

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Count the floating-point operations of one forward pass: video embedding, blocks and head."""
        assert timesteps == 1, "all tokens have one timestep"
        width, rows = self.width, tokens + text_tokens
        # Projections of attention (q, k, v, output), then the two of the feed-forward.
        blocks = self.num_layers * (8 * rows * width**2 + 4 * rows * width * self.ffn_dim)
        # Patch embedding and head.
        ends = 2 * tokens * width * prod(self.patch_size) * (self.in_channels + self.out_channels)
        return blocks + self.self_attention_flops(tokens, text_tokens) + ends

    def attention_rows(self, tokens: int, text_tokens: int) -> int:
        """Return the number of queries, and of keys, of a head: those of the video and of the text."""
        return tokens + text_tokens

    def cross_attention_flops(self, tokens: int, text_tokens: int) -> int:  # noqa: ARG002
        """Return 0: there is no cross-attention, because the text is among the tokens."""
        return 0

    def context_flops(self, text_tokens: int) -> int:  # noqa: ARG002
        """Return 0: nothing is computed once per request, because the text is embedded in every step."""
        return 0

    def cached_values(self, text_tokens: int) -> int:
        """Count the values that are kept for one prompt during denoising: the text encoder's output."""
        return text_tokens * self.text_dim

    def activation_bytes(self, tokens: int, text_tokens: int, dtype_bytes: int) -> int:
        """Estimate the bytes of working memory of the transformer blocks for one video.

        Rotary tables are held twice, with and without the text.
        """
        both = super().activation_bytes(tokens + text_tokens, text_tokens, dtype_bytes)
        return both + tokens * self.rotary_bytes
