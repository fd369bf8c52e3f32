"""What a transformer with joint attention costs: the text is among the tokens of every block. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from paradit.models.spec import FP32_BYTES, TransformerSpec


@dataclass(frozen=True, kw_only=True)
class JointTransformerSpec(TransformerSpec):
    """A transformer whose text tokens go through its blocks with the video's."""

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Operations of one forward: of its blocks, and of the video's tokens before and after them."""
        assert timesteps == 1, "all tokens have one timestep"
        width, rows = self.width, tokens + text_tokens
        blocks = self.num_layers * (8 * rows * width**2 + 4 * rows * width * self.ffn_dim)
        ends = 2 * tokens * width * prod(self.patch_size) * (self.in_channels + self.out_channels)
        return blocks + self.self_attention_flops(tokens, text_tokens) + ends

    def self_attention_flops(self, tokens: int, text_tokens: int) -> int:
        """Those that grow with the square of the rows, the text's among them."""
        return self.num_layers * 4 * (tokens + text_tokens) ** 2 * self.width

    def cross_attention_flops(self, tokens: int, text_tokens: int) -> int:  # noqa: ARG002
        """None: the text is among the tokens."""
        return 0

    def context_flops(self, text_tokens: int) -> int:  # noqa: ARG002
        """None: the text is embedded in every step."""
        return 0

    def cached_values(self, text_tokens: int) -> int:
        """Values that are kept of one prompt over the steps: what the text encoder returns."""
        return text_tokens * self.text_dim

    def activation_bytes(self, tokens: int, text_tokens: int, dtype_bytes: int) -> int:
        """Estimate of the blocks' working memory; rotary tables are held with the text and without it."""
        rotary_tables = 2 * self.attention_head_dim * FP32_BYTES
        both = super().activation_bytes(tokens + text_tokens, text_tokens, dtype_bytes)
        return both + tokens * rotary_tables
