"""Attention in one process: every token is here, so it never waits."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paradit.attention.protocol import Attend, Kernel, Layout, Projection, Wait


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention of [B, S, H, D] tensors, as diffusers' native backend computes it."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def some_rows(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A kernel for some of a head's query rows, which gives the bits that it gives among all rows.

    On a CPU torch computes 32 rows at a time, and the last one to three otherwise: then the last four to
    seven go by themselves. For head dims of 16 and more.
    """
    rows = query.shape[1]
    if query.device.type != "cpu" or rows % 32 not in (1, 2, 3) or rows < 8:
        return kernel(query, key, value)
    parts = torch.split(query, [rows - rows % 4 - 4, rows % 4 + 4], dim=1)
    return torch.cat([kernel(part, key, value) for part in parts], dim=1)


def local(kernel: Kernel = sdpa) -> Attend:
    """Attention of all tokens; it never yields."""

    def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        yield from ()
        value, key, query = projection
        return kernel(layout.rope.apply(query), layout.rope.apply(key), value)

    return attend
