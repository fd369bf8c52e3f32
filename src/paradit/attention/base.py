"""The seam: what a block offers to attention, and what attention gives back.

See docs/development/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from paradit.attention.rope import Rope


@dataclass(frozen=True)
class Pattern:
    """Tokens in groups that attend only within themselves, where a model prescribes it.

    Token i of the sequence is in group (i // run) % groups. No form of attention here has patterns yet.
    """

    groups: int
    run: int = 1


@dataclass(frozen=True)
class Site:
    """Where in a forward an attention is."""

    layer: int
    """The model's layer, counted over all of them, whichever this rank holds."""
    name: str = "self"
    """The attention's name within its block: a block may attend several times."""
    step: int = 0
    """The denoising step, counted from 0, where it is known."""
    pattern: Pattern | None = None
    """None: all tokens attend to all."""

    @property
    def key(self) -> tuple[int, str]:
        """Layer and name: what the same attention has in common in all steps."""
        return self.layer, self.name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the tokens are that one rank holds; or all of them, in one process."""

    rope: Rope
    """The rotations of the tokens, in the order of the tokens."""
    num_replicated: int = 0
    """How many tokens, at the end, every rank holds: a joint-attention model's text."""


Projection = Iterator[Tensor]
"""Gives v, then k, then q, each [B, S, H, D] before RoPE, each usable as soon as it is there."""


class Wait(Protocol):
    """Something on its way, such as a collective's `torch.distributed.Work`."""

    def wait(self) -> object:
        """Block until it is there."""


Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value), each [B, S, H, D] -> the attended values [B, S, H, D]; full attention."""

Attend = Callable[[Site, Projection, Layout], Generator[Wait, None, Tensor]]
"""(site, projection, layout of these tokens) -> attended values [B, S, H, D].

A generator, which yields where it would wait: whoever drives it may let other work run meanwhile.
"""
