"""The seam: what a block offers to attention, and what attention gives back. See docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from torch import Tensor

from paradit.attention.rope import Rope

Projection = Iterator[Tensor]
"""Gives v, then k, then q, each [B, S, H, D] before RoPE, each usable as soon as it is there."""


class Wait(Protocol):
    """Something on its way, such as a collective's `torch.distributed.Work`."""

    def wait(self) -> object:
        """Block until it is there."""


Attend = Callable[[int, Projection, Rope], Generator[Wait, None, Tensor]]
"""(layer, projection, rope of these tokens) -> attended values [B, S, H, D].

A generator, which yields where it would wait: whoever drives it may let other work run meanwhile.
"""
