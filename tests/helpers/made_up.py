"""Made-up transformer with only the parts that a forward needs, and tokens for it."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from paradit.attention.base import Layout
from paradit.attention.rope import Rope, grid_positions
from paradit.models.protocol import Block, SplitTransformer, Tokens

DEPTH = 16
"""Number of channels of a head."""


class MadeUp(SplitTransformer[Tokens, Any, Layout]):
    """Transformer with only the parts that a forward needs."""

    def __init__(self, num_heads: int, blocks: Sequence[Block[Tokens]]) -> None:
        self.num_heads, self.blocks = num_heads, blocks

    def head(self, tokens: Tokens) -> Tensor:
        return tokens.hidden_states


MadeUp.__abstractmethods__ = frozenset()


def made_up(num_heads: int, blocks: Sequence[Block[Tokens]]) -> Any:
    return MadeUp(num_heads, blocks)  # type: ignore[abstract]  # its forward needs no more


def random_weights(seed: int, number: int, num_heads: int) -> Tensor:
    """Return weights of random projections, [number, width, width]."""
    generator, width = torch.Generator().manual_seed(seed), num_heads * DEPTH
    return torch.randn(number, width, width, generator=generator) / width**0.5


def projected(hidden_states: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Yield hidden states [B, S, width], multiplied by each of `weights`, as [B, S, H, D]."""
    # Computed row by row, because a matrix product may round differently for other numbers of rows.
    for weight in weights:
        yield (hidden_states[..., None, :] * weight).sum(-1).unflatten(2, (-1, DEPTH))


def random_tokens(number: int, num_heads: int, batch: int = 1) -> Tokens:
    angles = torch.linspace(0, 3, number)[None, :, None, None].expand(1, number, 1, DEPTH).contiguous()
    sin = angles.sin()
    sin[..., 0::2].neg_()
    rope = Rope(positions=grid_positions((number, 1, 1)), cos=angles.cos(), sin=sin)
    generator = torch.Generator().manual_seed(9)
    hidden_states = torch.randn(batch, number, num_heads * DEPTH, generator=generator)
    return Tokens(hidden_states=hidden_states, layout=Layout(rope=rope))
