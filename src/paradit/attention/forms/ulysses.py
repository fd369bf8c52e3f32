"""Ulysses (arXiv 2309.14509): queries, keys and values travel to the ranks that compute their heads."""

from __future__ import annotations

from paradit.attention.registry import Asked, Choice, Form


class Ulysses(Form):
    name = "ulysses"
    help = "Queries, keys and values are sent to the ranks that compute their heads, and results sent back."
    exactness = "exact: bit for bit the result of one process"
    automatic = helped = patterns = True
    joined_by = "paradit.attention.chunked:join"
    timed_by = "paradit.attention.timing.head_exchange:layer"

    def candidates(self, asked: Asked, heads: int) -> list[Choice]:  # noqa: ARG002
        # On several ranks PipeSP in one chunk is the same program.
        return [Choice(self.name)] if asked.ranks == 1 else []


ULYSSES = Ulysses()
