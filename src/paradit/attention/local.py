"""Attention in one process: every token is here, so it never waits."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention of [B, S, H, D] tensors, as diffusers' native backend computes it."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


FEW = 16
"""Rows; where fewer are left over in a block of torch's attention on a CPU, they may be rounded otherwise."""


def some_rows(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, *, start: int = 0, num_rows: int | None = None
) -> Tensor:
    """A kernel for a head's query rows from `start` on, which gives the bits that it gives among all rows.

    num_rows: how many the head has; None: as many as keys.

    On a CPU torch computes a block of rows at a time. The last block may be a small one, whose matrix
    products go through other instructions: up to 10 rows were seen to, by head dim, number of keys and
    processor; and on some a lone small block differs from one that follows another. So a row is repeated
    until the last block is no small one, unless it is that of the whole head too: then the rows in it go by
    themselves, in a block as long that follows another. For head dims of 16 and more, and keys of which
    blocks of 512 leave more than three over.
    """
    total, rows = num_rows or key.shape[1], query.shape[1]
    if query.device.type != "cpu" or rows == 0:
        return kernel(query, key, value)
    few = total % _block(total)
    last = min(rows, max(0, start + rows - (total - few))) if few < FEW else 0
    parts = []
    if rows > last:
        body = query[:, : rows - last]
        missing = FEW - body.shape[1] % _block(body.shape[1])
        if 0 < missing < FEW:
            body = torch.cat([body, body[:, :1].expand(-1, missing, -1, -1)], dim=1)
        parts.append(kernel(body, key, value)[:, : rows - last])
    if last:
        tail = query[:, rows - last :]
        before = few - last + (_block(1) if total > few else 0)
        filled = torch.cat([tail[:, :1].expand(-1, before, -1, -1), tail], dim=1)
        parts.append(kernel(filled, key, value)[:, before:])
    return torch.cat(parts, dim=1)


def _block(rows: int) -> int:
    """How many query rows torch's attention on a CPU computes at a time, of so many."""
    return 32 if rows < 192 else 64 if rows < 768 else 256


def unattended(after_each: Callable[[], None] = lambda: None) -> Attend:
    """Nothing is attended to: values stand for the attended ones, once keys and queries are rotated.

    So a block takes what it takes without its attention. after_each: called after each of v, k and q.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        yield from ()
        value = next(projection)
        after_each()
        for projected in projection:
            layout.rope.apply(projected)
            after_each()
        return value

    return attend


def local(kernel: Kernel = sdpa) -> Attend:
    """Attention of all tokens; it never yields."""

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        yield from ()
        value, key, query = projection
        query = layout.rope.apply(query)  # one after the other: what was rotated is needed no more
        key = layout.rope.apply(key)
        return kernel(query, key, value)

    return attend
