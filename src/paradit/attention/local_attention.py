"""Attention in one process, which holds every token and so never waits for other ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
from paradit.attention.grouped import attended


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return full attention of [B, S, H, D] tensors, as diffusers' native attention backend computes it."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def unattended(after_each: Callable[[], None] = lambda: None) -> Attend:
    """Return a stand-in for attention that only applies RoPE to keys and queries, and returns the values.

    It serves to time a transformer block without its attention. after_each: function that is called each time
    that values, keys or queries have been computed.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        yield from ()  # makes this a generator, as attention has to be
        value = next(projection)
        after_each()
        for projected in projection:
            layout.rope.apply(projected)
            after_each()
        return value

    return attend


def local(kernel: Kernel = sdpa) -> Attend:
    """Return an attention function for a single process, which holds all tokens and never has to wait."""

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        yield from ()  # makes this a generator, as attention has to be
        value, key, query = projection
        # Rotate one after the other, so that each unrotated tensor is freed at once.
        query = layout.rope.apply(query)
        key = layout.rope.apply(key)
        return attended(kernel, site.pattern, query, key, value)

    return attend
