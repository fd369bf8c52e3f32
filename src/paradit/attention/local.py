"""Attention in one process: every token is here, so it never waits."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paradit.attention.protocol import Attend, Kernel, Layout, Projection, Wait


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention of [B, S, H, D] tensors, as diffusers' native backend computes it."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def local(kernel: Kernel = sdpa) -> Attend:
    """Attention of all tokens; it never yields."""

    def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        yield from ()
        value, key, query = projection
        return kernel(layout.rope.apply(query), layout.rope.apply(key), value)

    return attend
