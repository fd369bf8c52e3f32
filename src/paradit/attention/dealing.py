"""Division of a sequence's tokens among ranks by the groups of sparse patterns. Imports no torch.

In a layer with sparse attention, tokens attend only within their group. Ranks that hold whole groups compute
such a layer without messages. The next layer has other groups, for which tokens move to other ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

from paradit.attention.patterns import Pattern
from paradit.distributed.shares import Shares

Parts = Sequence[Sequence[int]]
"""Type of a sequence's parts: the tokens of each part, as indices in the sequence."""


@dataclass(frozen=True, eq=False)
class Dealing:
    """Division of tokens among ranks such that a rank, or a team of ranks, holds whole groups of a pattern.

    A team is a rank with one or more groups or, if there are more ranks than groups, several ranks that share
    one group.
    """

    pattern: Pattern
    held: Parts
    """Tokens that each rank holds, in the order in which it holds them."""
    teams: Sequence[Sequence[int]]
    """Ranks of each team, in the order in which they hold the team's tokens."""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.held))

    @property
    def num_ranks(self) -> int:
        return len(self.held)

    def team(self, rank: int) -> Sequence[int]:
        """Return the ranks of the team that `rank` is in."""
        (mine,) = [team for team in self.teams if rank in team]
        return mine

    def group_sizes(self, rank: int) -> list[int]:
        """Return how many of a rank's tokens are in each group, in the order in which the rank holds them.

        In a sequence of few tokens, a rank may hold none: they count as one empty group.
        """
        sizes = Counter(token // self.pattern.run % self.pattern.groups for token in self.held[rank])
        return list(sizes.values()) or [0]

    @cached_property
    def holder(self) -> list[tuple[int, int]]:
        """Rank that holds each token, and the token's place among all that this rank holds."""
        found = [(0, 0)] * self.num_tokens
        for rank, tokens in enumerate(self.held):
            for place, token in enumerate(tokens):
                found[token] = rank, place
        return found

    def moved_to(self, other: Dealing) -> list[list[int]]:
        """Return how many tokens each rank sends to each other rank on the way to another dealing.

        The result is a matrix [sender][receiver].
        """
        pairs = Counter((old, new) for (old, _), (new, _) in zip(self.holder, other.holder, strict=True))
        ranks = range(self.num_ranks)
        return [[0 if one == two else pairs[one, two] for two in ranks] for one in ranks]


def fits(pattern: Pattern, num_ranks: int) -> bool:
    """Return whether the groups of a pattern can be dealt equally to a number of ranks."""
    return pattern.groups % num_ranks == 0 or num_ranks % pattern.groups == 0


def dealings(patterns: Sequence[Pattern], num_tokens: int, num_ranks: int) -> dict[Pattern, Dealing]:
    """Return the dealing of tokens to ranks for each of a model's sparse patterns.

    Few tokens move between the first pattern's dealing and another: a team's ranks divide a group by the
    groups of the other pattern, and then each rank takes the part that has the most of the tokens it holds.
    For skiparse with 16 groups of pairs on 16 ranks, no token moves at all. Raises ValueError if the groups
    cannot be dealt equally.
    """
    if not all(fits(pattern, num_ranks) for pattern in patterns):
        raise ValueError(f"the groups of {patterns} cannot be dealt to {num_ranks} ranks")
    first, *others = patterns
    second = others[0] if others else first
    parts = list(_parts(first, second, num_tokens, num_ranks))
    found = {first: _dealing(first, parts, range(num_ranks))}
    for pattern in others:
        parts = list(_parts(pattern, first, num_tokens, num_ranks))
        found[pattern] = _dealing(pattern, parts, _nearest(found[first], parts))
    return found


def team_shares(dealing: Dealing, ranks: Sequence[int], num_heads: int) -> Shares:
    """Return the shares of some ranks: the tokens that each holds, and equal parts of their attention."""
    tokens = tuple(len(dealing.held[rank]) for rank in ranks)
    return replace(Shares.equal(sum(tokens), num_heads, len(ranks)), tokens=tokens)


def _dealing(pattern: Pattern, parts: Parts, owners: Sequence[int]) -> Dealing:
    """Return a dealing, given the rank that owns each part."""
    held: list[Sequence[int]] = [()] * len(parts)
    for owner, part in zip(owners, parts, strict=True):
        held[owner] = part
    size = max(1, len(parts) // pattern.groups)
    return Dealing(pattern, held, [owners[first : first + size] for first in range(0, len(parts), size)])


def _parts(pattern: Pattern, other: Pattern, num_tokens: int, num_ranks: int) -> Iterator[list[int]]:
    """Divide a sequence into one part for each rank; the parts of a team follow one another.

    other: pattern by whose groups a team of several ranks divides its own group.
    """
    teams = min(pattern.groups, num_ranks)
    each, size = pattern.groups // teams, num_ranks // teams
    for first in range(0, pattern.groups, each):
        tokens = [
            token
            for group in range(first, first + each)
            for token in pattern.tokens(group, pattern.places(group, range(num_tokens)))
        ]
        if size > 1:
            tokens.sort(key=lambda token: token // other.run % other.groups)
        stops = accumulate(Shares.equal(len(tokens), 1, size).tokens, initial=0)
        yield from (tokens[start:stop] for start, stop in pairwise(stops))


def _nearest(old: Dealing, parts: Parts) -> list[int]:
    """Return the rank that gets each part: one that holds many of the part's tokens already."""
    common = Counter((number, old.holder[token][0]) for number, part in enumerate(parts) for token in part)
    ranks = range(old.num_ranks)
    owners: dict[int, int] = {}
    for number, rank in sorted(
        ((number, rank) for number in ranks for rank in ranks), key=lambda pair: -common[pair]
    ):
        if number not in owners and rank not in owners.values():
            owners[number] = rank
    return [owners[number] for number in ranks]
