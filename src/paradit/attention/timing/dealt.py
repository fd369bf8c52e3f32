"""Simulation, for the planner, of attention on ranks that hold whole groups of a model's sparse layers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from paradit.attention.dealing import Dealing, dealings, team_shares
from paradit.attention.registry import Choice
from paradit.attention.timing.head_exchange import chunked_layer
from paradit.planner.discrete_events import Compute, Step
from paradit.planner.step import Branch, Exchange, Layer


def layer(branch: Branch, choice: Choice) -> Layer:
    """Return the planner's simulation of a transformer layer whose tokens are dealt by group.

    Before a sparse layer, hidden states move from the layer before it, which has another pattern.
    """
    shares = branch.shares
    dealt = dealings(branch.sparse_patterns, shares.num_tokens, shares.num_ranks)
    if branch.pattern not in dealt:
        # All tokens attend to all. They are dealt otherwise than with Ulysses, but in parts of nearly the
        # same sizes.
        return chunked_layer(branch, interleaved=choice.interleave)
    here = dealt[branch.pattern]
    before = next((other for other in dealt.values() if other is not here), here)
    token_bytes = shares.num_heads * branch.row_bytes
    moved = [[token_bytes * tokens for tokens in row] for row in before.moved_to(here)]
    move = Exchange(branch, branch.message("hidden states", branch.ranks, moved))
    groups = [_of_team(branch, here, team, interleaved=choice.interleave) for team in here.teams]
    places = {rank: (number, team.index(rank)) for number, team in enumerate(here.teams) for rank in team}

    def layer(rank: int, key: Hashable) -> Iterator[Step]:
        number, place = places[rank]
        yield from move.post(rank, (key, "move"))
        yield from move.wait(rank, (key, "move"))
        yield from groups[number](place, (key, number))

    return layer


def _of_team(branch: Branch, dealing: Dealing, team: Sequence[int], *, interleaved: bool) -> Layer:
    """Return the simulation of a sparse layer on the ranks of one team, by their places in it."""
    # A rank's tokens of a group lie together, so none are gathered.
    costs = [replace(branch.costs[rank], gathering=0.0) for rank in team]
    own = replace(
        branch,
        ranks=tuple(branch.ranks[rank] for rank in team),
        shares=team_shares(dealing, team, branch.shares.num_heads),
        costs=costs,
    )
    if len(team) > 1:
        return chunked_layer(own, interleaved=interleaved)

    def alone(place: int, key: Hashable) -> Iterator[Step]:  # noqa: ARG001
        yield Compute("project", 3 * costs[place].value)
        yield own.attention(place, sum(own.shares.work))
        yield Compute("finish", costs[place].finish)

    return alone
