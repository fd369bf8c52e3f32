"""Attention in one process: every token is here, so it never waits."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paradit.attention.protocol import Layout, Projection, Wait


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention of [B, S, H, D] tensors, as diffusers' native backend computes it."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
    """The attended values [B, S, H, D] of all tokens; an `Attend` that never yields."""
    yield from ()
    value, key, query = projection
    return sdpa(layout.rope.apply(query), layout.rope.apply(key), value)
