"""Uneven all-to-all between the ranks of one group: the one place that chooses how bytes travel.

gloo's `all_to_all_single` reaches half the rate of a limited link, since a receiver's readiness queues behind
the outgoing payload; point-to-point messages with the receives posted first reach nearly all of it. NCCL's
grouped all-to-all needs no such care.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from paradit.trace.spans import EXCHANGE, MESSAGE, begin, end, span


class Transfer:
    """Messages on their way; `wait` gives the received ones, by rank, as often as it is called."""

    def __init__(
        self,
        works: Sequence[dist.Work],
        received: list[Tensor],
        in_flight: list[Tensor],
        traced: int | None = None,
    ) -> None:
        """traced: the span of these messages."""
        self._works, self._received, self._traced = list(works), received, traced
        # What is being sent must not be freed or reused before it has left.
        self._in_flight = in_flight

    def wait(self) -> list[Tensor]:
        if self._works:
            with span("wait for messages", EXCHANGE):
                for work in self._works:
                    work.wait()
                end(self._traced)
        # gloo would wait for ever for what has come already.
        self._works, self._in_flight = [], []
        return self._received


class Transport:
    """All-to-all over a process group, or with itself alone where the group is None."""

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        ranks: Sequence[int] | None = None,
        *,
        point_to_point: bool = False,
    ) -> None:
        """ranks: the group's, by their numbers in the world, in the order of this transport; None: ascending.

        point_to_point: never a collective, so that ranks between which nothing travels need not take part.
        """
        self._group = group
        self._ranks = list(ranks or dist.get_process_group_ranks(group)) if group is not None else [0]
        self.rank = 0 if group is None else self._ranks.index(dist.get_rank())
        self.num_ranks = len(self._ranks)
        # A collective counts them ascending.
        self._by_messages = point_to_point or self._ranks != sorted(self._ranks)
        self.bytes_sent = self.bytes_received = 0
        """Counted over the life of this object; what a rank keeps for itself does not travel."""

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        """Send `outgoing[r]` (flat, may be empty) to rank r; `sizes[r]` elements come from it."""
        mine = outgoing[self.rank]
        incoming = [mine if rank == self.rank else mine.new_empty(size) for rank, size in enumerate(sizes)]
        others = [rank for rank in range(self.num_ranks) if rank != self.rank]
        sent = sum(outgoing[rank].nbytes for rank in others)
        received = sum(incoming[rank].nbytes for rank in others)
        self.bytes_sent += sent
        self.bytes_received += received
        if self.num_ranks == 1:
            return Transfer([], incoming, [])
        traced = begin("messages", MESSAGE, sent=sent, received=received) if sent or received else None
        if self._by_messages or dist.get_backend(self._group) == "gloo":
            works = self._point_to_point(outgoing, incoming)
            return Transfer(works, incoming, outgoing, traced)
        return self._all_to_all(outgoing, incoming, traced)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, by rank; all have one shape."""
        flat = tensor.reshape(-1)
        received = self.start([flat] * self.num_ranks, [flat.numel()] * self.num_ranks).wait()
        return [part.view(tensor.shape) for part in received]

    def broadcast(self, tensor: Tensor, root: int = 0) -> Tensor:
        """The root's tensor; the others pass one of the same kind, whose values do not matter."""
        flat = tensor.contiguous().view(-1)
        nothing = flat[:0]
        outgoing = [flat if self.rank == root else nothing] * self.num_ranks
        sizes = [flat.numel() if rank == root else 0 for rank in range(self.num_ranks)]
        return self.start(outgoing, sizes).wait()[root].view(tensor.shape)

    def _point_to_point(self, outgoing: list[Tensor], incoming: list[Tensor]) -> list[dist.Work]:
        # Receives first; and each rank begins with its right neighbour, so that not all send to one.
        turns = [(self.rank + step) % self.num_ranks for step in range(1, self.num_ranks)]
        operations = [
            dist.P2POp(dist.irecv, incoming[rank], self._ranks[rank], group=self._group)
            for rank in reversed(turns)
            if incoming[rank].numel()
        ]
        operations += [
            dist.P2POp(dist.isend, outgoing[rank], self._ranks[rank], group=self._group)
            for rank in turns
            if outgoing[rank].numel()
        ]
        return dist.batch_isend_irecv(operations) if operations else []

    def _all_to_all(self, outgoing: list[Tensor], incoming: list[Tensor], traced: int | None) -> Transfer:
        sizes = [tensor.numel() for tensor in incoming]
        sizes[self.rank] = 0
        sent = [tensor.numel() for tensor in outgoing]
        sent[self.rank] = 0
        payload = torch.cat([tensor for rank, tensor in enumerate(outgoing) if rank != self.rank])
        received = payload.new_empty(sum(sizes))
        work = dist.all_to_all_single(received, payload, sizes, sent, group=self._group, async_op=True)
        parts: list[Tensor] = list(torch.split(received, sizes))
        parts[self.rank] = incoming[self.rank]
        return Transfer([work], parts, [payload], traced)
