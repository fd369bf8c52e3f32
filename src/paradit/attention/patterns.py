"""Patterns of sparse attention: which keys each query of a sequence sees. Imports no torch.

A pattern divides the tokens of a sequence into groups, and a token attends to the tokens of its own group. So
the tokens of a group are both its queries and its keys. Groups may differ in size: nothing is padded. In full
attention, all tokens are in one group.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pattern:
    """Division of tokens into groups that attend only within themselves.

    Token i of the sequence is in group (i // run) % groups: tokens are dealt to the groups in turn, `run` at
    a time.
    """

    groups: int
    """Number of groups."""
    run: int = 1
    """Number of neighbouring tokens that are dealt to a group at a time."""

    def __post_init__(self) -> None:
        if self.groups < 1 or self.run < 1:
            raise ValueError(f"groups and run must be at least 1, got {self}")

    def places(self, group: int, tokens: range) -> range:
        """Return which of a group's tokens are in a part of the sequence, as places within the group.

        A group's tokens have the places 0, 1, and so on, in the order of the sequence. tokens: the part of
        the sequence, a range with step 1.
        """
        return range(self._before(group, tokens.start), self._before(group, tokens.stop))

    def tokens(self, group: int, places: range) -> list[int]:
        """Return the tokens of the sequence that have the given places within a group."""
        cycle = self.groups * self.run
        return [place // self.run * cycle + group * self.run + place % self.run for place in places]

    def pairs(self, num_tokens: int, rows: range | None = None) -> int:
        """Count the (query, key) pairs of a sequence of `num_tokens` tokens, for one head.

        rows: range of the queries to count, with step 1; None: all queries.
        """
        every = range(num_tokens)
        return sum(
            len(self.places(group, every if rows is None else rows)) * len(self.places(group, every))
            for group in range(self.groups)
        )

    def _before(self, group: int, token: int) -> int:
        """Return how many of a group's tokens come before a token of the sequence."""
        cycles, rest = divmod(token, self.groups * self.run)
        return cycles * self.run + min(self.run, max(0, rest - group * self.run))


FULL = Pattern(groups=1)
"""Pattern in which every token attends to all tokens."""
