"""Ulysses and PipeSP attention: ranks exchange queries, keys and values, and each computes some heads.

With one chunk this is Ulysses. With several chunks it is PipeSP, which computes one chunk while other chunks
travel. Exact: every row is computed exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch import Tensor, empty_like

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
from paradit.attention.grouped import attended
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.distributed.exchange import Chunk, UlyssesExchange
from paradit.distributed.mesh import Sharers
from paradit.distributed.redistribution import Arrival, start
from paradit.distributed.shares import Shares


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:
    """Set up Ulysses or PipeSP on ranks; return a function that makes this rank's attention function.

    The attention is PipeSP (Ulysses in chunks) if `choice` has several chunks. The returned function is
    called for each division of an attention among the ranks. It takes a `Shares`: which tokens each rank
    holds, and which part of the attention it computes.
    """
    return lambda shares: chunked(UlyssesExchange(shares, sharers.transport, choice.parts), kernel)


def chunked(exchange: UlyssesExchange, kernel: Kernel) -> Attend:
    """Return an attention function for Ulysses or PipeSP, which exchanges heads between ranks chunk by chunk.

    exchange: plan of what each rank sends and receives in each chunk. With one chunk this is Ulysses, with
    several it is PipeSP.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        send, rope = exchange.send, layout.rope
        first, *others = exchange.chunks
        # Messages are started in the order in which they are needed, so that none waits for a later one.
        # The first values travel while keys and queries are projected. The planner simulates this function in
        # `attention.timing.head_exchange`.
        value = next(projection)
        arrivals: list[list[Arrival]] = [[start([send(first.heads, value)])]]
        key, query = rope.apply(next(projection)), rope.apply(next(projection))
        arrivals[0].append(start([send(first.heads, key), send(first.queries, query)]))
        for chunk in others:
            moves = [send(chunk.heads, value), send(chunk.heads, key), send(chunk.queries, query)]
            arrivals.append([start(moves)])

        work = Work(exchange, kernel, like=value, pattern=site.pattern)
        for chunk, arriving in zip(exchange.chunks, arrivals, strict=True):
            yield from arriving
            values, keys, queries = (tensors for arrival in arriving for tensors in arrival.wait())
            work.take_heads(chunk, values, keys)
            work.compute(chunk, queries)
        return (yield from work.gather())

    return attend


class Work:
    """One rank's part of one attention computation: it keeps keys and values that come, and sends results."""

    def __init__(
        self,
        exchange: UlyssesExchange,
        kernel: Kernel,
        like: Tensor,
        pattern: Pattern | None = None,
        first_row: int = 0,
    ) -> None:
        """Prepare one attention computation.

        like: any tensor with the shape and dtype of this rank's attended values. pattern: which keys each
        query sees; None: all. first_row: index in the sequence of a head's first row. It is not 0 in a long
        video if keys of earlier frames are read from a cache.
        """
        self._exchange, self._kernel, self._like = exchange, kernel, like
        self._pattern, self._first_row = pattern, first_row
        self._heads: dict[int, tuple[int, Tensor, Tensor]] = {}
        self._leaving: list[Arrival] = []
        self._attended = empty_like(like)

    def take_heads(self, chunk: Chunk, values: list[Tensor], keys: list[Tensor]) -> None:
        """Keep the values and keys that a chunk (part of the exchanged data) brings for further heads.

        values, keys: each a list of one tensor [B, S, heads, D]. In a long video S may exceed the number of a
        head's queries, because the keys of neighbouring frame blocks are appended.
        """
        # Heads are kept for later chunks, which may need them for further query rows.
        first, last = chunk.new_heads.first_head, chunk.new_heads.last_head
        for head in range(first, last):
            self._heads[head] = first, values[0], keys[0]

    def compute(self, chunk: Chunk, queries: list[Tensor]) -> None:
        """Compute attention for a chunk's queries, and send the results to the ranks that hold the tokens.

        queries: one tensor [B, rows, heads, D] for each box (rectangle of query rows x heads) that this rank
        computes in the chunk.
        """
        rows, results = self._exchange.shares.num_rows, []
        for block, query in zip(chunk.work, queries, strict=True):
            first, values, keys = self._heads[block.first_head]
            heads = slice(block.first_head - first, block.last_head - first)
            results.append(
                attended(
                    self._kernel,
                    self._pattern,
                    query,
                    keys[:, :, heads],
                    values[:, :, heads],
                    start=block.start,
                    num_rows=rows,
                    first_row=self._first_row,
                )
            )
        into = self._exchange.held(self._attended)  # results arrive in place
        self._leaving.append(start([chunk.results.move(results, self._like, into)]))

    def gather(self) -> Generator[Wait, None, Tensor]:
        """Wait for all results, and return the attended values [B, S, H, D] of this rank's tokens."""
        for arrival in self._leaving:
            yield arrival
            arrival.wait()
        return self._attended
