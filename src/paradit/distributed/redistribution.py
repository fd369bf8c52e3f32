"""Tensors over (token, head) boxes, moved from one way of holding them to another.

Every exchange of sequence parallelism is one: queries from the ranks that hold the tokens to those that do
the work, keys and values to all that need their heads, results back, predictions to everyone. Both sides
compute from the boxes alone what travels, so nothing about sizes is ever sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from paradit.distributed.shares import Box
from paradit.distributed.transport import Transfer, Transport

Boxes = Sequence[Sequence[Box]]
"""The boxes of each rank, in the order of the ranks; those of one rank do not overlap."""


class Redistribution:
    """From `source` boxes to `target` boxes; each box is a tensor [B, tokens, heads, D] on its rank."""

    def __init__(self, source: Boxes, target: Boxes, transport: Transport) -> None:
        self._source, self._target, self._transport = source, target, transport
        rank = transport.rank
        self._outgoing = [_common(source[rank], boxes) for boxes in target]
        self._incoming = [_common(boxes, target[rank]) for boxes in source]

    def elements_sent(self, rank: int) -> int:
        """How many (token, head) rows `rank` sends to other ranks; times batch x D x item size in bytes."""
        return sum(
            len(part)
            for other, boxes in enumerate(self._target)
            if other != rank
            for _, _, part in _common(self._source[rank], boxes)
        )

    def start(self, tensors: Sequence[Tensor], like: Tensor) -> Arrival:
        """Start to move this rank's tensors, one for each of its source boxes.

        All ranks call it, also those that hold nothing: `like`, any tensor of the kind, says batch, D, dtype
        and device.
        """
        rank = self._transport.rank
        mine, boxes = self._source[rank], self._target[rank]
        assert len(tensors) == len(mine), (len(tensors), mine)
        batch, depth = like.shape[0], like.shape[3]
        outgoing = [
            _pack([_view(tensors[i], mine[i], part) for i, _, part in parts], like)
            for parts in self._outgoing
        ]
        sizes = [batch * depth * sum(len(part) for _, _, part in parts) for parts in self._incoming]
        buffers = [
            like.new_empty(batch, box.stop - box.start, box.last_head - box.first_head, depth)
            for box in boxes
        ]
        return Arrival(self._transport.start(outgoing, sizes), buffers, boxes, self._incoming)


class Arrival:
    """What is on its way to this rank's target boxes."""

    def __init__(
        self,
        transfer: Transfer,
        buffers: list[Tensor],
        boxes: Sequence[Box],
        incoming: list[list[tuple[int, int, Box]]],
    ) -> None:
        self._transfer: Transfer | None = transfer
        self._buffers, self._boxes, self._incoming = buffers, boxes, incoming

    def wait(self) -> list[Tensor]:
        """The tensors [B, tokens, heads, D] of this rank's target boxes, complete."""
        if self._transfer is not None:
            received = self._transfer.wait()
            self._transfer = None
            for message, parts in zip(received, self._incoming, strict=True):
                self._unpack(message, [(target, part) for _, target, part in parts])
        return self._buffers

    def _unpack(self, message: Tensor, parts: list[tuple[int, Box]]) -> None:
        views = [_view(self._buffers[i], self._boxes[i], part) for i, part in parts]
        ends = [0, *accumulate(view.numel() for view in views)]
        for view, (start, stop) in zip(views, pairwise(ends), strict=True):
            view.copy_(message[start:stop].view(view.shape))


def _common(source: Sequence[Box], target: Sequence[Box]) -> list[tuple[int, int, Box]]:
    """(index of the source box, of the target box, what both have), in an order that both sides share."""
    pairs = ((i, j, a.intersect(b)) for i, a in enumerate(source) for j, b in enumerate(target))
    return [(i, j, box) for i, j, box in pairs if box is not None]


def _view(tensor: Tensor, box: Box, part: Box) -> Tensor:
    """The part of a box's tensor [B, tokens, heads, D]."""
    tokens = slice(part.start - box.start, part.stop - box.start)
    heads = slice(part.first_head - box.first_head, part.last_head - box.first_head)
    return tensor[:, tokens, heads]


def _pack(views: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat([view.reshape(-1) for view in views]) if views else like.new_empty(0)
