"""Attention in a window of a long video: a frame block's tokens also read keys and values of its neighbours.

Keys are kept before RoPE (DualParal's feature cache, arXiv 2505.21070): the same frame is elsewhere in its
own block's window than in its neighbour's.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paradit.attention.protocol import Attend, Kernel, Layout, Projection, Wait
from paradit.attention.rope import Rope

Features = dict[int, tuple[Tensor, Tensor]]
"""By layer: keys, before RoPE, and values [B, S, H, D] of some tokens."""


@dataclass(frozen=True)
class Neighbour:
    """Tokens whose keys and values are read, and not computed."""

    features: Features
    rope: Rope
    """Where they are in this window."""


@dataclass(frozen=True)
class Kept:
    """Tokens start to stop, whose keys and values are put into `features` for a neighbour."""

    features: Features
    start: int
    stop: int


def windowed(kernel: Kernel, neighbours: Sequence[Neighbour] = (), keep: Sequence[Kept] = ()) -> Attend:
    """Attention of tokens to each other and to their neighbours; it never yields.

    `keep` may name the features that are read: in each layer they are read before they are replaced.
    """

    def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        yield from ()
        value, key, query = projection
        read = [(neighbour.rope, *neighbour.features[layer]) for neighbour in neighbours]
        for kept in keep:
            part = slice(kept.start, kept.stop)
            # Copies, so that the rest of the window's keys and values need not stay.
            kept.features[layer] = key[:, part].clone(), value[:, part].clone()
        keys = torch.cat([layout.rope.apply(key), *(rope.apply(k) for rope, k, _ in read)], dim=1)
        values = torch.cat([value, *(v for _, _, v in read)], dim=1)
        return kernel(layout.rope.apply(query), keys, values)

    return attend
