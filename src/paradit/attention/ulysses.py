"""Ulysses: queries, keys and values travel to the ranks that work on their heads (arXiv 2309.14509)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from paradit.attention.chunked import chunked_layer
from paradit.attention.registry import Asked, Choice, Form

if TYPE_CHECKING:
    from paradit.attention.base import Attend, Kernel
    from paradit.distributed.mesh import Sharers
    from paradit.distributed.shares import Shares
    from paradit.planner.step import Branch, Layer


class Ulysses(Form):
    name = "ulysses"
    help = "Queries, keys and values travel to the ranks that work on their heads, and the results back."
    exactness = "exact, with the bits of one process"
    automatic = helped = True

    def candidates(self, asked: Asked, heads: int) -> list[Choice]:  # noqa: ARG002
        # On several ranks PipeSP in one chunk is this.
        return [Choice(self.name)] if asked.ranks == 1 else []

    def join(self, sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG002
        from paradit.attention.chunked import chunked
        from paradit.distributed.exchange import UlyssesExchange

        return lambda shares: chunked(UlyssesExchange(shares, sharers.transport), kernel)

    def layer(self, branch: Branch, choice: Choice) -> Layer:
        return chunked_layer(branch, interleaved=choice.interleave)


ULYSSES = Ulysses()
