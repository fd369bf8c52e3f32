"""The seam: what a block offers to attention, and what attention gives back. See docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from torch import Tensor

from paradit.attention.rope import Rope


class Layout(Protocol):
    """Where the tokens are that one rank holds; or all of them, in one process."""

    @property
    def rope(self) -> Rope:
        """The rotations of the tokens, in the order of the tokens."""

    @property
    def num_replicated(self) -> int:
        """How many tokens, at the end, every rank holds: a joint-attention model's text."""


Projection = Iterator[Tensor]
"""Gives v, then k, then q, each [B, S, H, D] before RoPE, each usable as soon as it is there."""


class Wait(Protocol):
    """Something on its way, such as a collective's `torch.distributed.Work`."""

    def wait(self) -> object:
        """Block until it is there."""


Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each [B, S, H, D] -> the attended values [B, S, H, D]; full attention."""

Attend = Callable[[int, Projection, Layout], Generator[Wait, None, Tensor]]
"""(layer, projection, layout of these tokens) -> attended values [B, S, H, D].

A generator, which yields where it would wait: whoever drives it may let other work run meanwhile.
"""
