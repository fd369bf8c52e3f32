"""Redistribution of tensors: from the boxes (tokens x heads) that ranks hold to the boxes they need.

Every exchange of sequence parallelism is a redistribution. Queries go from the ranks that hold the tokens to
the ranks that compute their attention. Keys and values go to all ranks that need their heads. Results go
back, and predictions go to every rank. Sender and receiver both work out from the boxes what travels, so
sizes are never sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from torch import Tensor

from paradit.distributed.shares import Box, Boxes, boxes_given, common_parts
from paradit.distributed.transport import Transfer, Transport


class Redistribution:
    """Plan of what each rank sends to the others, so that every rank gets the tokens and heads that it needs.

    source, target: for each rank, the boxes (rectangles of tokens x heads) that it holds, and those that it
    needs. Each box is a tensor [B, tokens, heads, D] on its rank. replicated: boxes, such as that of the
    text, that all ranks except the last `num_helpers` hold in addition; they are sent only to the last ranks,
    which hold nothing. See `boxes_given`.
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
        """Boxes (rectangles of tokens x heads) that this rank holds; `move` takes one tensor for each."""
        self.boxes = target[rank]
        """Boxes (rectangles of tokens x heads) that this rank needs; `move` fills one tensor for each."""
        others = [other for other in range(len(target)) if other != rank]
        self.outgoing = {other: common_parts(self._given(rank, other), target[other]) for other in others}
        self.incoming = {other: common_parts(self._given(other, rank), target[rank]) for other in others}
        self.kept = common_parts(self.held, target[rank])
        """Data that this rank both holds and needs, as triples: index of the box that it holds, index of the
        box that it needs, and the overlap of both.

        `outgoing` and `incoming` have such triples for each other rank, for the data that is sent to it and
        received from it.
        """

    def elements_sent(self, rank: int) -> int:
        """Return how many (token, head) elements `rank` sends to other ranks.

        An element is the data of one token in one head: D values for each video of the batch.
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
        """Prepare to send this rank's tensors, one for each box that it holds; return the transfer.

        The transfer begins when it is passed to `start`. All ranks call `move`, also those that hold nothing.
        A box is a region of (tokens x heads). tensors: one for each box that this rank holds. like: any
        tensor with the batch, D, dtype and device of those that are sent. into: tensors to receive into, one
        for each box that this rank needs; None: new tensors.
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
    """One rank's part in a redistribution: the tensors that it sends, and those that it receives into."""

    redistribution: Redistribution
    tensors: Sequence[Tensor]
    into: list[Tensor]
    like: Tensor

    def leaving(self, rank: int) -> list[Tensor]:
        """Return the parts of this rank's tensors to send to another rank, in the order that it expects."""
        boxes = self.redistribution.held
        return [_view(self.tensors[i], boxes[i], part) for i, _, part in self.redistribution.outgoing[rank]]

    def coming(self, rank: int) -> list[Tensor]:
        """Return views into which another rank's data are received, in the order in which it sends them."""
        boxes = self.redistribution.boxes
        return [_view(self.into[j], boxes[j], part) for _, j, part in self.redistribution.incoming[rank]]

    def keep(self) -> None:
        """Copy the data that this rank both holds and needs, which no message carries."""
        held, boxes = self.redistribution.held, self.redistribution.boxes
        for i, j, part in self.redistribution.kept:
            _view(self.into[j], boxes[j], part).copy_(_view(self.tensors[i], held[i], part))


def start(moves: Sequence[Move]) -> Arrival:
    """Begin to send the tensors of several redistributions together, in a single message to each rank."""
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
    """Messages of one or more redistributions on their way; `wait` returns the tensors that they bring."""

    def __init__(self, transfer: Transfer, moves: Sequence[Move]) -> None:
        self._transfer: Transfer | None = transfer
        self._moves = moves

    def wait(self) -> list[list[Tensor]]:
        """Wait for all messages; return, for each redistribution, the tensors that this rank needs.

        There is one tensor [B, tokens, heads, D] for each box (rectangle of tokens x heads) that the rank
        needs.
        """
        if self._transfer is not None:
            received = self._transfer.wait()
            self._transfer = None  # a second `wait` must not unpack the messages again
            for rank, message in enumerate(received):
                if len(message):
                    _unpack(message, [view for move in self._moves for view in move.coming(rank)])
        return [move.into for move in self._moves]


def _view(tensor: Tensor, box: Box, part: Box) -> Tensor:
    """Return a view of one part (a rectangle of tokens x heads) of a larger box's tensor.

    tensor: the tensor [B, tokens, heads, D] of `box`. part: the rectangle, which lies within `box`.
    """
    tokens = slice(part.start - box.start, part.stop - box.start)
    heads = slice(part.first_head - box.first_head, part.last_head - box.first_head)
    return tensor[:, tokens, heads]


def _pack(views: list[Tensor], like: Tensor) -> Tensor:
    # Each view is copied straight to its place, without contiguous copies as `torch.cat` would need.
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
