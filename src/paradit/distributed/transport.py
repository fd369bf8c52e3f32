"""All-to-all with messages of unequal sizes between the ranks of a process group, over gloo or NCCL.

gloo's `all_to_all_single` reaches only half the rate of a slow link, because a receiver's ready signal waits
behind the data that the same rank sends. Point-to-point messages, with the receives posted first, reach
nearly the full rate. NCCL's all-to-all needs no such care.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from paradit.trace.spans import EXCHANGE, MESSAGE, begin, end, span


class Transfer:
    """All-to-all exchange in flight; `wait` returns the received tensors by rank, and may be repeated."""

    def __init__(
        self,
        works: Sequence[dist.Work],
        received: list[Tensor],
        in_flight: list[Tensor],
        traced: int | None = None,
    ) -> None:
        """Keep an all-to-all's pending operations and buffers.

        received: for each rank, the tensor into which its data are received. in_flight: tensors that are
        being sent. traced: index of the exchange's span in the trace; None: it is not traced.
        """
        self._works, self._received, self._traced = list(works), received, traced
        # Keeps tensors that are being sent from being freed or reused too early.
        self._in_flight = in_flight

    def wait(self) -> list[Tensor]:
        if self._works:
            with span("wait for messages", EXCHANGE):
                for work in self._works:
                    work.wait()
                end(self._traced)
        # gloo would wait forever if a finished work were waited for again.
        self._works, self._in_flight = [], []
        return self._received


class Transport:
    """Connection among the ranks of a process group, for all-to-all exchanges; or of one rank with itself."""

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        ranks: Sequence[int] | None = None,
        *,
        point_to_point: bool = False,
    ) -> None:
        """Connect this rank to the other ranks of a process group.

        group: the process group; None: this rank is connected only to itself. ranks: the group's ranks, as
        numbered in the default process group, in the order in which this transport numbers them; None:
        ascending. point_to_point: whether all messages are sent rank to rank, never by a collective, so that
        ranks between which nothing travels need not take part.
        """
        self._group = group
        self._ranks = list(ranks or dist.get_process_group_ranks(group)) if group is not None else [0]
        self.rank = 0 if group is None else self._ranks.index(dist.get_rank())
        self.num_ranks = len(self._ranks)
        # A collective numbers the ranks in ascending order only.
        self._by_messages = point_to_point or self._ranks != sorted(self._ranks)
        self.bytes_sent = self.bytes_received = 0
        """Number of bytes that this rank has sent to other ranks through this object. `bytes_received` is the
        number of bytes received from them."""

    def among(self, ranks: Sequence[int]) -> Transport:
        """Return a connection among some of these ranks, this one included; it makes no process group."""
        if list(ranks) == [self.rank]:
            return Transport(None)
        return Transport(self._group, [self._ranks[rank] for rank in ranks], point_to_point=True)

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        """Begin to send `outgoing[r]` to each rank r, and to receive `sizes[r]` elements from each rank r.

        The tensors are flat, and an empty tensor is not sent. All ranks call this together.
        """
        mine = outgoing[self.rank]
        incoming = [mine if rank == self.rank else mine.new_empty(size) for rank, size in enumerate(sizes)]
        others = [rank for rank in range(self.num_ranks) if rank != self.rank]
        sent = sum(outgoing[rank].nbytes for rank in others)
        received = sum(incoming[rank].nbytes for rank in others)
        self.bytes_sent += sent
        self.bytes_received += received
        if self.num_ranks == 1:  # there may be no process group
            return Transfer([], incoming, [])
        traced = begin("messages", MESSAGE, sent=sent, received=received) if sent or received else None
        if self._by_messages or dist.get_backend(self._group) == "gloo":
            works = self._point_to_point(outgoing, incoming)
            return Transfer(works, incoming, outgoing, traced)
        return self._all_to_all(outgoing, incoming, traced)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return a list of every rank's tensor, in the order of ranks; all must have the same shape."""
        flat = tensor.reshape(-1)
        received = self.start([flat] * self.num_ranks, [flat.numel()] * self.num_ranks).wait()
        return [part.view(tensor.shape) for part in received]

    def broadcast(self, tensor: Tensor, root: int = 0) -> Tensor:
        """Return the root's tensor on all ranks.

        tensor: on the root, the tensor to send; on the other ranks, one of the same shape and dtype with any
        values.
        """
        flat = tensor.contiguous().view(-1)
        nothing = flat[:0]
        outgoing = [flat if self.rank == root else nothing] * self.num_ranks
        sizes = [flat.numel() if rank == root else 0 for rank in range(self.num_ranks)]
        return self.start(outgoing, sizes).wait()[root].view(tensor.shape)

    def _point_to_point(self, outgoing: list[Tensor], incoming: list[Tensor]) -> list[dist.Work]:
        # Receives come first, and each rank starts with its right neighbour, so that not all send to one.
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
        # What a rank keeps for itself is not copied: its part of the result is the tensor itself.
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
