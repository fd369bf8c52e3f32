"""Redistribution of tensors: from the (token, head) boxes that ranks hold to the boxes that they need.

Every exchange of sequence parallelism is one: queries go from the ranks that hold the tokens to those that do
the work, keys and values to all that need their heads, results back, and predictions to every rank. Both
sides work out from the boxes alone what travels, so sizes are never sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import Tensor

from paradit.distributed.shares import Box, Boxes, boxes_given, common_parts
from paradit.distributed.transport import Transfer, Transport


class Redistribution:
    """Plan of what each rank sends to turn its `source` boxes into the `target` boxes of all ranks.

    Each box is a tensor [B, tokens, heads, D] on its rank. `replicated` are boxes that every rank except the
    helpers (the last ranks) holds in addition to its source boxes. They travel to helpers only
    (`boxes_given`).
    """

    def __init__(
        self,
        source: Boxes,
        target: Boxes,
        transport: Transport,
        replicated: Sequence[Box] = (),
        num_helpers: int = 0,
    ) -> None:
        self._source, self._target, self.transport = source, target, transport
        self._replicated, self._num_helpers = replicated, num_helpers
        rank, num_holders = transport.rank, len(source) - num_helpers
        self.held = [*source[rank], *replicated] if rank < num_holders else list(source[rank])
        """Boxes that this rank holds; it passes one tensor for each."""
        self.boxes = target[rank]
        """Boxes that this rank receives."""
        others = [other for other in range(len(target)) if other != rank]
        self.outgoing = {other: common_parts(self._given(rank, other), target[other]) for other in others}
        self.incoming = {other: common_parts(self._given(other, rank), target[rank]) for other in others}
        self.kept = common_parts(self.held, target[rank])
        """Parts that stay on this rank: (source box's index, target box's index, their common part).

        `outgoing` and `incoming` hold such triples for each other rank.
        """

    def elements_sent(self, rank: int) -> int:
        """Return the number of (token, head) rows that `rank` sends to other ranks.

        Multiply by batch x D x item size for bytes.
        """
        return sum(
            len(part)
            for other, boxes in enumerate(self._target)
            if other != rank
            for _, _, part in common_parts(self._given(rank, other), boxes)
        )

    def _given(self, sender: int, receiver: int) -> Sequence[Box]:
        return boxes_given(self._source, sender, receiver, self._replicated, self._num_helpers)

    def move(self, tensors: Sequence[Tensor], like: Tensor, into: Sequence[Tensor] | None = None) -> Move:
        """Return a move of this rank's tensors, one for each box that it holds, to be sent by `start`.

        All ranks call it, including those that hold nothing: `like`, any tensor of the same kind, sets batch,
        D, dtype and device. What arrives is written to `into`, one tensor for each target box, or to new
        tensors.
        """
        assert len(tensors) == len(self.held), (len(tensors), self.held)
        if into is None:
            batch, depth = like.shape[0], like.shape[3]
            into = [
                like.new_empty(batch, box.stop - box.start, box.last_head - box.first_head, depth)
                for box in self.boxes
            ]
        return Move(self, tensors, list(into), like)


@dataclass(frozen=True)
class Move:
    """Tensors that this rank contributes to a redistribution, and those that it receives into."""

    redistribution: Redistribution
    tensors: Sequence[Tensor]
    into: list[Tensor]
    like: Tensor

    def leaving(self, rank: int) -> list[Tensor]:
        """Return the parts of this rank's tensors that go to another rank, in an order both sides share."""
        boxes = self.redistribution.held
        return [_view(self.tensors[i], boxes[i], part) for i, _, part in self.redistribution.outgoing[rank]]

    def coming(self, rank: int) -> list[Tensor]:
        """Return the views that receive another rank's data, in the order in which it is sent."""
        boxes = self.redistribution.boxes
        return [_view(self.into[j], boxes[j], part) for _, j, part in self.redistribution.incoming[rank]]

    def keep(self) -> None:
        """Copy the parts that stay on this rank to their target tensors."""
        held, boxes = self.redistribution.held, self.redistribution.boxes
        for i, j, part in self.redistribution.kept:
            _view(self.into[j], boxes[j], part).copy_(_view(self.tensors[i], held[i], part))


def start(moves: Sequence[Move]) -> Arrival:
    """Start several moves of one transport together, with a single message to each rank."""
    transport, like = moves[0].redistribution.transport, moves[0].like
    outgoing, sizes = [], []
    for rank in range(transport.num_ranks):
        itself = rank == transport.rank
        leaving = [] if itself else [view for move in moves for view in move.leaving(rank)]
        coming = [] if itself else [view for move in moves for view in move.coming(rank)]
        outgoing.append(_pack(leaving, like))
        sizes.append(sum(view.numel() for view in coming))
    arrival = Arrival(transport.start(outgoing, sizes), moves)
    for move in moves:  # while the messages are in flight
        move.keep()
    return arrival


class Arrival:
    """Moves in flight."""

    def __init__(self, transfer: Transfer, moves: Sequence[Move]) -> None:
        self._transfer: Transfer | None = transfer
        self._moves = moves

    def wait(self) -> list[list[Tensor]]:
        """Return, for each move, the completed tensors [B, tokens, heads, D] of this rank's target boxes."""
        if self._transfer is not None:
            received = self._transfer.wait()
            self._transfer = None
            for rank, message in enumerate(received):
                if len(message):
                    _unpack(message, [view for move in self._moves for view in move.coming(rank)])
        return [move.into for move in self._moves]


def _view(tensor: Tensor, box: Box, part: Box) -> Tensor:
    """Return the view of `part` in a box's tensor [B, tokens, heads, D]."""
    tokens = slice(part.start - box.start, part.stop - box.start)
    heads = slice(part.first_head - box.first_head, part.last_head - box.first_head)
    return tensor[:, tokens, heads]


def _pack(views: list[Tensor], like: Tensor) -> Tensor:
    message = like.new_empty(sum(view.numel() for view in views))
    for part, view in zip(_parts(message, views), views, strict=True):
        part.copy_(view)
    return message


def _unpack(message: Tensor, views: list[Tensor]) -> None:
    for part, view in zip(_parts(message, views), views, strict=True):
        view.copy_(part)


def _parts(message: Tensor, views: list[Tensor]) -> list[Tensor]:
    """Split a flat message into views with the shapes of the given tensors."""
    ends = [0, *accumulate(view.numel() for view in views)]
    return [
        message[first:last].view(view.shape)
        for view, (first, last) in zip(views, pairwise(ends), strict=True)
    ]
