"""Interface between transformer blocks and attention: what a block hands over, and what attention returns.

See docs/development/architecture.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from paradit.attention.patterns import Pattern
from paradit.attention.rope import Rope


@dataclass(frozen=True)
class Site:
    """Identity of one attention computation in a model: its layer, its name in the layer, and the step."""

    layer: int
    """Index of the layer, counted over all of the model's layers, not only those that this rank holds."""
    name: str = "self"
    """Name of the attention within its transformer block, which may attend several times."""
    step: int = 0
    """Index of the denoising step, from 0; also 0 if the step is not known."""
    pattern: Pattern | None = None
    """Groups of tokens that attend only within themselves; None: all tokens attend to all."""

    @property
    def key(self) -> tuple[int, str]:
        """Layer index and attention name, which identify the same attention in all denoising steps."""
        return self.layer, self.name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Positions in the video of the tokens that one rank holds. A single process holds all tokens."""

    rope: Rope
    """Rotations of the rotary position embedding (RoPE) for these tokens, in token order."""
    num_replicated: int = 0
    """Number of tokens of which every rank holds a copy, such as the text tokens in joint attention. They are
    the last tokens of the sequence."""

    def shard(self, start: int, stop: int) -> Self:
        """Return the layout of tokens `start` to `stop` (excluded)."""
        return replace(self, rope=self.rope.shard(start, stop))

    def take(self, held: Tensor) -> Self:
        """Return the layout of some of these tokens. held: their indices among these, in any order."""
        return replace(self, rope=self.rope.take(held))


Projection = Iterator[Tensor]
"""Iterator over a transformer block's values, then keys, then queries, each [B, S, H, D], before RoPE.

Because the values come first, they can be sent to other ranks before keys and queries are computed.
"""


class Wait(Protocol):
    """Operation under way that can be waited for, such as a collective's `torch.distributed.Work`."""

    def wait(self) -> object:
        """Block until the operation is done."""


Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Type of a function that computes full attention: query, key, value [B, S, H, D] -> attended values."""

Attend = Callable[[Site, Projection, Layout], Generator[Wait, None, Tensor]]
"""Type of a function that computes attention: (site, projection, layout) -> attended values [B, S, H, D].

Such a function is a generator function. Its generator yields each operation (`Wait`) for which the attention
has to wait, so that the caller may run other work meanwhile; the generator's return value is the result.
"""


class Deal(ABC):
    """Tokens as an attention form deals them to ranks, for some layers of a model."""

    held: Tensor
    """Tokens that this rank holds, as indices in the video's sequence, in the order in which it holds
    them."""

    @abstractmethod
    def attend(self, site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        """Compute attention, as an `Attend`, for the tokens that this rank holds."""

    @abstractmethod
    def move(self, hidden_states: Tensor, to: Deal) -> Generator[Wait, None, Tensor]:
        """Move hidden states [B, tokens, width] to the ranks that hold their tokens in another dealing.

        Returns those of the tokens that this rank then holds; yields what it has to wait for.
        """

    @abstractmethod
    def gather(self, values: Tensor) -> Tensor:
        """Return the values [B, S, D] of all tokens, in the order of the video, on every rank."""


class Dealt(ABC):
    """Attention of a form that deals tokens to ranks in its own way, and anew between layers.

    With other forms, whose attention is an `Attend`, each rank holds a contiguous part of the tokens.
    """

    @abstractmethod
    def by_layer(self, sites: Sequence[Site], device: torch.device) -> list[Deal]:
        """Return how the tokens are dealt in each layer.

        sites: the attention of each layer. device: where this rank's tokens are.
        """
