"""Keys and values that go round among groups of ranks: what ring and USP have in common, and its timing.

Importing this imports no torch, so that the planner can.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from paradit.distributed.shares import Shares, chunk_boxes
from paradit.planner.events import Compute, Message, Post, Step
from paradit.planner.events import Wait as WaitFor
from paradit.planner.step import Branch

if TYPE_CHECKING:
    from torch import Size, Tensor

    from paradit.attention.base import Wait
    from paradit.distributed.transport import Transfer, Transport


class Rotation:
    """Keys and values on their way round. Rows that every rank has, at the end, stay where they are."""

    def __init__(self, key: Tensor, value: Tensor, lengths: Sequence[int], transport: Transport) -> None:
        """lengths: how many tokens each rank of the transport has keys of; transport: in a ring."""
        from torch import cat

        self._lengths, self._transport = lengths, transport
        self._key, self._value = key, value
        length = lengths[transport.rank]
        message = cat([x[:, :length].reshape(-1) for x in (key, value)])
        self._arriving = self._pass_on(message, turn=1)

    def _pass_on(self, message: Tensor, turn: int) -> Transfer | None:
        """Send a block to the right; in turn t that of the rank t to the left arrives."""
        rank, num_ranks = self._transport.rank, self._transport.num_ranks
        if turn == num_ranks:
            return None
        nothing = message.new_empty(0)
        right, left = (rank + 1) % num_ranks, (rank - 1) % num_ranks
        sizes = [0] * num_ranks
        sizes[left] = 2 * self._block_shape(turn).numel()
        return self._transport.start([message if r == right else nothing for r in range(num_ranks)], sizes)

    def _block_shape(self, turn: int) -> Size:
        from torch import Size

        batch, _, heads, depth = self._key.shape
        owner = (self._transport.rank - turn) % self._transport.num_ranks
        return Size([batch, self._lengths[owner], heads, depth])

    def attend(
        self, queries: Sequence[Tensor], heads: Sequence[slice]
    ) -> Generator[Wait, None, list[Tensor]]:
        """The attended values of queries [B, rows, H, D], each with its part of the keys' heads."""
        from paradit.attention.partial import Merge, sdpa_with_lse

        merges = [Merge() for _ in queries]
        key, value = self._key, self._value
        for turn in range(1, self._transport.num_ranks + 1):
            for merge, query, part in zip(merges, queries, heads, strict=True):
                if query.numel() and key.numel():
                    merge.add(*sdpa_with_lse(query, key[:, :, part], value[:, :, part]))
            if self._arriving is not None:
                yield self._arriving
                message = self._arriving.wait()[(self._transport.rank - 1) % self._transport.num_ranks]
                self._arriving = self._pass_on(message, turn + 1)
                key, value = (x.view(self._block_shape(turn)) for x in message.chunk(2))
        return [merge.result(query) for merge, query in zip(merges, queries, strict=True)]


@dataclass(frozen=True, eq=False)
class RotationTiming:
    """Layers in which keys and values go round among groups of ranks, with Ulysses in each group."""

    branch: Branch
    groups: Sequence[Sequence[int]]
    """Ranks of the branch by group, in the order of the ring; all groups have as many."""

    @property
    def degree(self) -> int:
        return len(self.groups)

    @property
    def size(self) -> int:
        """Number of ranks in a group."""
        return len(self.groups[0])

    @cached_property
    def _lengths(self) -> list[int]:
        """Number of tokens of each group."""
        return [sum(self.branch.shares.tokens[rank] for rank in group) for group in self.groups]

    @cached_property
    def _heads(self) -> float:
        """Number of heads of a rank."""
        return self.branch.shares.num_heads / self.size

    @cached_property
    def _inside(self) -> list[tuple[Message, Message, Message]]:
        """By group: values, keys with queries, and results."""
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
        """For the ranks with the same heads, turn by turn: each group's keys and values one group on."""
        return [[self._turn(index, turn) for turn in range(self.degree - 1)] for index in range(self.size)]

    def _turn(self, index: int, turn: int) -> Message:
        degree = self.degree
        sent = [[0.0] * degree for _ in range(degree)]
        for group in range(degree):
            owner = (group - turn) % degree
            sent[group][(group + 1) % degree] = 2 * self.branch.row_bytes * self._lengths[owner] * self._heads
        ranks = [self.branch.ranks[group[index]] for group in self.groups]
        return self.branch.message("keys and values", ranks, sent)

    def layer(self, rank: int, key: Hashable) -> Iterator[Step]:
        """What the `rank`-th of the branch does in a layer."""
        cost = self.branch.costs[rank]
        group = next(number for number, ranks in enumerate(self.groups) if rank in ranks)
        values, together, results = self._inside[group]
        yield Compute("project", cost.value)
        if self.size > 1:
            yield Post((key, "v", group), values)
            yield Compute("project", 2 * cost.value)
            yield Post((key, "kq", group), together)
            yield WaitFor((key, "v", group))
            yield WaitFor((key, "kq", group))
        else:
            yield Compute("project", cost.value)
        yield from self._rotate(rank, group, key)
        if self.size > 1:
            yield Post((key, "out", group), results)
            yield WaitFor((key, "out", group))
        yield Compute("finish", cost.finish)

    def _rotate(self, rank: int, group: int, key: Hashable) -> Iterator[Step]:
        """Attention over one group's keys after the other, while the next ones are on their way."""
        branch, shares, cost = self.branch, self.branch.shares, self.branch.costs[rank]
        index = self.groups[group].index(rank)
        rows = (self._lengths[group] + shares.num_replicated) * self._heads
        for turn in range(self.degree):
            coming = self._turns[index][turn] if turn + 1 < self.degree else None
            if coming is not None:
                yield Post((key, "turn", index, turn), coming)
            if turn == 0 and self.size == 1:
                yield Compute("project", cost.value)
            owner = (group - turn) % self.degree
            part = (self._lengths[owner] + (shares.num_replicated if turn == 0 else 0)) / shares.num_rows
            yield branch.attention(rank, rows * part, coming.seconds if coming is not None else 0.0)
            if turn:  # the first part is what the others are merged with
                yield Compute("merge", cost.merge * rows * branch.batch)
            if coming is not None:
                yield WaitFor((key, "turn", index, turn))
