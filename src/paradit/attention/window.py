"""Attention in a long video: the tokens of a frame block also read the keys and values of its neighbours.

The frames that a frame block attends to are its window. Keys are cached before RoPE (DualParal's feature
cache, arXiv 2505.21070), because a frame's position in its own block's window differs from its position in a
neighbour's.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, cat

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
from paradit.attention.chunked import Work
from paradit.attention.grouped import attended
from paradit.attention.rope import Rope
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.redistribution import start

Features: TypeAlias = dict[tuple[int, str], tuple[Tensor, Tensor]]
"""Cached keys, before RoPE, and values [B, S, H, D] of some tokens, by (layer, name of the attention)."""


@dataclass(frozen=True)
class Neighbour:
    """Tokens of a neighbouring frame block, whose keys and values are read from a cache, not computed."""

    features: Features
    rope: Rope
    """RoPE rotations of the neighbouring block's tokens, at their positions among all frames that the frame
    block attends to."""
    is_before: bool
    """Whether these tokens come before the frame block's; otherwise they come after them."""


@dataclass(frozen=True)
class Kept:
    """Range, start to stop, of tokens whose keys and values are cached for a neighbouring frame block.

    The range counts the tokens that are computed: those of a frame block and perhaps of frames beside it.
    """

    features: Features
    start: int
    stop: int


def windowed(kernel: Kernel, neighbours: Sequence[Neighbour] = (), keep: Sequence[Kept] = ()) -> Attend:
    """Return an attention function for a single process: a frame block's tokens also attend to neighbours.

    neighbours: tokens of neighbouring frame blocks, whose keys and values are read from a cache. keep: ranges
    of this block's tokens whose keys and values are stored in a cache, for neighbouring blocks to read later.
    Both may use the same cache, because it is read before it is overwritten.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        yield from ()
        value, key, query = projection
        keys, values = _take(site, key, value, neighbours, keep, rope=layout.rope)
        query = layout.rope.apply(query)
        return attended(kernel, site.pattern, query, keys, values, first_row=_first_row(neighbours))

    return attend


def windowed_over(
    exchange: UlyssesExchange,
    rope: Rope,
    kernel: Kernel,
    neighbours: Sequence[Neighbour] = (),
    keep: Sequence[Kept] = (),
) -> Attend:
    """Return an attention function for several ranks: a frame block's tokens also attend to neighbours.

    exchange: plan of what the ranks send to each other, in one chunk, with whole heads. rope: RoPE rotations
    of all tokens that are computed, except replicated ones such as text. neighbours: tokens of neighbouring
    frame blocks, whose keys and values are read from a cache. keep: ranges of tokens whose keys and values
    are stored in a cache.

    Each rank caches only the heads that it computes, so cached keys and values are never sent to other ranks.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        # Keys are cached before RoPE, so they are sent before RoPE, and rotated on arrival. The planner
        # simulates this function in `attention.timing.windows`.
        send, (chunk,), mine = exchange.send, exchange.chunks, layout.rope
        # Send values first: they travel while keys and queries are projected.
        value = next(projection)
        arrivals = [start([send(chunk.heads, value)])]
        arrivals.append(start([send(chunk.heads, next(projection))]))
        arrivals.append(start([send(chunk.queries, mine.apply(next(projection)))]))
        yield from arrivals
        ((all_values,),), ((all_keys,),), (queries,) = (arrival.wait() for arrival in arrivals)
        # Keys have arrived from all ranks, so they need the rotations of all tokens, replicated ones last.
        num_tokens = len(mine.positions)
        whole = rope.followed_by(mine.shard(num_tokens - layout.num_replicated, num_tokens))
        keys, values = _take(site, all_keys, all_values, neighbours, keep, rope=whole)
        work = Work(exchange, kernel, like=value, pattern=site.pattern, first_row=_first_row(neighbours))
        work.take_heads(chunk, [values], [keys])
        work.compute(chunk, queries)
        return (yield from work.gather())

    return attend


def _take(
    site: Site,
    key: Tensor,
    value: Tensor,
    neighbours: Sequence[Neighbour],
    keep: Sequence[Kept],
    *,
    rope: Rope,
) -> tuple[Tensor, Tensor]:
    """Return the rotated keys, and the values, of a window's tokens followed by its neighbours' tokens.

    If the site has a pattern, they are in the order of the frames instead, because the pattern counts tokens
    from the first frame that the frame block attends to: the model sees these frames as a video of its own.

    The window is what is computed: a frame block and perhaps frames beside it. key, value: unrotated keys,
    and values, of the window's tokens. neighbours: tokens of neighbouring frame blocks, whose keys and values
    are read from a cache. keep: ranges of the window's tokens whose keys and values are stored in a cache.
    rope: rotations of the window's tokens.
    """
    # Read before anything is stored: a cache may be both read and overwritten.
    read = [(neighbour.rope, *neighbour.features[site.key]) for neighbour in neighbours]
    for kept in keep:
        part = slice(kept.start, kept.stop)
        # Copy them, so that the rest of the window's keys and values can be freed.
        kept.features[site.key] = key[:, part].clone(), value[:, part].clone()
    keys, values = [rope.apply(key)], [value]
    for neighbour, (rotations, k, v) in zip(neighbours, read, strict=True):
        place = 0 if site.pattern and neighbour.is_before else len(keys)
        keys.insert(place, rotations.apply(k))
        values.insert(place, v)
    return cat(keys, dim=1), cat(values, dim=1)


def _first_row(neighbours: Sequence[Neighbour]) -> int:
    """Return how many cached tokens come before those that are computed."""
    return sum(len(neighbour.rope.positions) for neighbour in neighbours if neighbour.is_before)
