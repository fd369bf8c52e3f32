"""Simulation, for the planner, of ring attention and USP: keys and values pass around a ring of groups."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from paradit.attention.forms.usp import Grid
from paradit.attention.registry import Choice
from paradit.config.options import decode
from paradit.distributed.shares import Shares, chunk_boxes
from paradit.planner.discrete_events import Compute, Message, Post, Step, Wait
from paradit.planner.step import Branch, Layer


def ring_layer(branch: Branch, choice: Choice) -> Layer:  # noqa: ARG001
    """Return the planner's simulation of a transformer layer with ring attention (`attention.ring`)."""
    return RotationTiming(branch, [[rank] for rank in range(branch.shares.num_ranks)]).layer


def usp_layer(branch: Branch, choice: Choice) -> Layer:
    """Return the planner's simulation of a transformer layer with USP attention (`attention.usp`)."""
    groups = decode(Grid, choice.options).groups(branch.shares.num_ranks)
    return RotationTiming(branch, groups).layer


@dataclass(frozen=True, eq=False)
class RotationTiming:
    """Planner's simulation of layers in which keys and values pass around a ring of Ulysses groups.

    In ring attention each group is a single rank.
    """

    branch: Branch
    groups: Sequence[Sequence[int]]
    """Ranks of the guidance branch by Ulysses group (all equally large), in the order of the ring."""

    @property
    def degree(self) -> int:
        return len(self.groups)

    @property
    def size(self) -> int:
        """Number of ranks in each Ulysses group."""
        return len(self.groups[0])

    @cached_property
    def _lengths(self) -> list[int]:
        """Numbers of tokens held, one for each Ulysses group of ranks, in the order of the ring."""
        return [sum(self.branch.shares.tokens[rank] for rank in group) for group in self.groups]

    @cached_property
    def _heads(self) -> float:
        """Average number of heads that a rank works on, which may be a fraction."""
        return self.branch.shares.num_heads / self.size

    @cached_property
    def _inside(self) -> list[tuple[Message, Message, Message]]:
        """For each Ulysses group, its inner exchanges: of values, of keys and queries, and of results."""
        return [
            self._exchange(group, length) for group, length in zip(self.groups, self._lengths, strict=True)
        ]

    def _exchange(self, group: Sequence[int], length: int) -> tuple[Message, Message, Message]:
        branch, shares = self.branch, self.branch.shares
        within = Shares(
            num_heads=shares.num_heads,
            tokens=tuple(shares.tokens[rank] for rank in group),
            work=Shares.equal(length + shares.num_replicated, shares.num_heads, self.size).work,
            num_replicated=shares.num_replicated,
        )
        part = replace(
            branch,
            ranks=tuple(branch.ranks[rank] for rank in group),
            shares=within,
            costs=[branch.costs[rank] for rank in group],
        )
        (whole,) = chunk_boxes(within, 1, whole_heads=True)
        heads = [[box] for box in whole.new_heads]
        together = part.inward("keys and queries", heads, whole.work)
        return part.inward("values", heads), together, part.results(whole.work)

    @cached_property
    def _turns(self) -> list[list[Message]]:
        """Messages that carry keys and values around the ring, as a table [index of rank][turn].

        The index counts the ranks within a Ulysses group. In each turn, ranks with the same index send keys
        and values to the next group.
        """
        return [[self._turn(index, turn) for turn in range(self.degree - 1)] for index in range(self.size)]

    def _turn(self, index: int, turn: int) -> Message:
        degree = self.degree
        sent = [[0.0] * degree for _ in range(degree)]
        for group in range(degree):
            # In pass t a rank sends on what came to it in pass t - 1, at first its own.
            owner = (group - turn) % degree
            sent[group][(group + 1) % degree] = 2 * self.branch.row_bytes * self._lengths[owner] * self._heads
        ranks = [self.branch.ranks[group[index]] for group in self.groups]
        return self.branch.message("keys and values", ranks, sent)

    def layer(self, rank: int, key: Hashable) -> Iterator[Step]:
        """Yield one rank's simulated events in a transformer layer: what it computes, sends and waits for.

        rank: the rank's index among those of the guidance branch. key: identifier of this run through the
        layer, which becomes part of the messages' identifiers.
        """
        cost = self.branch.costs[rank]
        group = next(number for number, ranks in enumerate(self.groups) if rank in ranks)
        values, together, results = self._inside[group]
        yield Compute("project", cost.value)
        if self.size > 1:
            yield Post((key, "v", group), values)
            yield Compute("project", 2 * cost.value)
            yield Post((key, "kq", group), together)
            yield Wait((key, "v", group))
            yield Wait((key, "kq", group))
        else:
            yield Compute("project", cost.value)
        yield from self._rotate(rank, group, key)
        if self.size > 1:
            yield Post((key, "out", group), results)
            yield Wait((key, "out", group))
        yield Compute("finish", cost.finish)

    def _rotate(self, rank: int, group: int, key: Hashable) -> Iterator[Step]:
        """Yield a rank's events in the simulated ring: attention over one group's keys while others travel.

        rank: the rank's index among those of the guidance branch. group: index of its Ulysses group. key:
        identifier of this run through the layer, which becomes part of the messages' identifiers.
        """
        branch, shares, cost = self.branch, self.branch.shares, self.branch.costs[rank]
        index = self.groups[group].index(rank)
        rows = (self._lengths[group] + shares.num_replicated) * self._heads
        for turn in range(self.degree):
            coming = self._turns[index][turn] if turn + 1 < self.degree else None
            if coming is not None:
                yield Post((key, "turn", index, turn), coming)
            # In ring attention, queries are projected while the first keys travel.
            if turn == 0 and self.size == 1:
                yield Compute("project", cost.value)
            # Replicated tokens, such as text, do not travel; they are attended to with a rank's own keys.
            owner = (group - turn) % self.degree
            part = (self._lengths[owner] + (shares.num_replicated if turn == 0 else 0)) / shares.num_rows
            yield branch.attention(rank, rows * part, coming.seconds if coming is not None else 0.0)
            if turn:  # the first part has nothing to merge with
                yield Compute("merge", cost.merge * rows * branch.batch)
            if coming is not None:
                yield Wait((key, "turn", index, turn))
