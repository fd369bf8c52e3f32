"""Ring attention, and USP: keys and values go round, block by block, while the block before is computed.

Ring (arXiv 2310.01889): every rank keeps its queries; memory stays at two blocks of keys and values. USP
(arXiv 2405.07719): Ulysses among some ranks, whose heads then go round among others.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from paradit.attention.base import Attend, Layout, Projection, Wait
from paradit.attention.partial import Merge, sdpa_with_lse
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.redistribution import start
from paradit.distributed.transport import Transfer, Transport


def ring(lengths: Sequence[int], transport: Transport) -> Attend:
    """lengths: how many tokens each rank holds; any, also none."""

    def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        value, key = next(projection), layout.rope.apply(next(projection))
        rotation = _Rotation(key, value, lengths, transport)
        query = layout.rope.apply(next(projection))
        (attended,) = yield from rotation.attend([query], [slice(None)])
        return attended

    return attend


def usp(exchange: UlyssesExchange, lengths: Sequence[int], transport: Transport) -> Attend:
    """exchange: among the ranks of this rank's Ulysses group, which gives all of a rank's heads at once.

    lengths: how many tokens each Ulysses group holds; transport: among the ranks with the same heads.
    """

    def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        send, rope, (chunk,) = exchange.send, layout.rope, exchange.chunks
        value = next(projection)
        coming = [start([send(chunk.heads, value)])]
        key, query = rope.apply(next(projection)), rope.apply(next(projection))
        coming.append(start([send(chunk.heads, key), send(chunk.queries, query)]))
        yield from coming
        (values,), (keys,), queries = (tensors for arrival in coming for tensors in arrival.wait())

        first = chunk.new_heads.first_head
        heads = [slice(block.first_head - first, block.last_head - first) for block in chunk.work]
        attended = yield from _Rotation(keys, values, lengths, transport).attend(queries, heads)
        out = torch.empty_like(value)
        results = start([chunk.results.move(attended, like=value, into=exchange.held(out))])
        yield results
        results.wait()
        return out

    return attend


class _Rotation:
    """Keys and values on their way round. Rows that every rank has, at the end, stay where they are."""

    def __init__(self, key: Tensor, value: Tensor, lengths: Sequence[int], transport: Transport) -> None:
        self._lengths, self._transport = lengths, transport
        self._key, self._value = key, value
        length = lengths[transport.rank]
        message = torch.cat([x[:, :length].reshape(-1) for x in (key, value)])
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

    def _block_shape(self, turn: int) -> torch.Size:
        batch, _, heads, depth = self._key.shape
        owner = (self._transport.rank - turn) % self._transport.num_ranks
        return torch.Size([batch, self._lengths[owner], heads, depth])

    def attend(
        self, queries: Sequence[Tensor], heads: Sequence[slice]
    ) -> Generator[Wait, None, list[Tensor]]:
        """The attended values of queries [B, rows, H, D], each with its part of the keys' heads."""
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
