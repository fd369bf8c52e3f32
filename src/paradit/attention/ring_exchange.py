"""Keys and values that travel around a ring of ranks: the part that ring attention and USP share."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Size, Tensor, cat

from paradit.attention.base import Wait
from paradit.attention.online_softmax import Merge, sdpa_with_lse
from paradit.distributed.transport import Transfer, Transport


class Rotation:
    """Keys and values on their way around a ring of ranks.

    Replicated tokens, such as text, which every rank holds after its own, do not travel.
    """

    def __init__(self, key: Tensor, value: Tensor, lengths: Sequence[int], transport: Transport) -> None:
        """Start sending this rank's keys and values to the next rank.

        lengths: number of tokens whose keys each rank of the ring holds. transport: connection among those
        ranks, in the order of the ring.
        """
        self._lengths, self._transport = lengths, transport
        self._key, self._value = key, value
        length = lengths[transport.rank]
        message = cat([x[:, :length].reshape(-1) for x in (key, value)])
        self._arriving = self._pass_on(message, turn=1)

    def _pass_on(self, message: Tensor, turn: int) -> Transfer | None:
        """Begin to send keys and values to the next rank of the ring, and to receive the previous rank's.

        turn: serial number of this exchange with both neighbours, counted from 1. Exchange t brings the keys
        and values of the rank t places before this rank in the ring. Returns None, and sends nothing, if this
        rank has already received those of all other ranks.
        """
        rank, num_ranks = self._transport.rank, self._transport.num_ranks
        if turn == num_ranks:
            return None
        nothing = message.new_empty(0)
        right, left = (rank + 1) % num_ranks, (rank - 1) % num_ranks
        sizes = [0] * num_ranks
        sizes[left] = 2 * self._block_shape(turn).numel()
        return self._transport.start([message if r == right else nothing for r in range(num_ranks)], sizes)

    def _block_shape(self, turn: int) -> Size:
        batch, _, heads, depth = self._key.shape
        owner = (self._transport.rank - turn) % self._transport.num_ranks
        return Size([batch, self._lengths[owner], heads, depth])

    def attend(
        self, queries: Sequence[Tensor], heads: Sequence[slice]
    ) -> Generator[Wait, None, list[Tensor]]:
        """Return attended values, one tensor for each of `queries`, over the keys of all ranks in the ring.

        queries: tensors [B, rows, H, D]. heads: for each of these tensors, the slice of the keys' heads to
        which it attends. This generator yields while it waits for keys and values of the previous rank.
        """
        merges = [Merge() for _ in queries]
        # First this rank's own keys, with those of replicated tokens, which are thus counted once.
        key, value = self._key, self._value
        for turn in range(1, self._transport.num_ranks + 1):
            for merge, query, part in zip(merges, queries, heads, strict=True):
                if query.numel() and key.numel():
                    merge.add(*sdpa_with_lse(query, key[:, :, part], value[:, :, part]))
            if self._arriving is not None:
                yield self._arriving
                # Pass the message on before computing with it, so that it travels meanwhile.
                message = self._arriving.wait()[(self._transport.rank - 1) % self._transport.num_ranks]
                self._arriving = self._pass_on(message, turn + 1)
                key, value = (x.view(self._block_shape(turn)) for x in message.chunk(2))
        return [merge.result(query) for merge, query in zip(merges, queries, strict=True)]
