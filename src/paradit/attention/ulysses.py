"""Ulysses and PipeSP: attention whose tokens are spread over ranks. Exact: every row is computed once.

Plain Ulysses is the exchange in one chunk. In more chunks, both directions are pipelined: while one chunk is
computed, the next ones travel in and the results of the one before travel out (PipeSP, arXiv 2511.12056,
whose own form chunks the results only: `pipesp_paper`).
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import torch
from torch import Tensor

from paradit.attention.base import Attend, Kernel, Layout, Projection, Wait
from paradit.attention.local import sdpa, some_rows
from paradit.distributed.exchange import Chunk, UlyssesExchange
from paradit.distributed.redistribution import Arrival, start
from paradit.distributed.shares import Box


def ulysses(exchange: UlyssesExchange, kernel: Kernel = sdpa) -> Attend:
    """All messages in are started in the order in which they are needed: nothing waits behind a later one."""

    def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        send, rope = exchange.send, layout.rope
        first, *others = exchange.chunks
        # The first values travel while keys and queries are projected.
        value = next(projection)
        arrivals: list[list[Arrival]] = [[start([send(first.heads, value)])]]
        key, query = rope.apply(next(projection)), rope.apply(next(projection))
        arrivals[0].append(start([send(first.heads, key), send(first.queries, query)]))
        for chunk in others:
            moves = [send(chunk.heads, value), send(chunk.heads, key), send(chunk.queries, query)]
            arrivals.append([start(moves)])

        work = Work(exchange, kernel, like=value)
        for chunk, arriving in zip(exchange.chunks, arrivals, strict=True):
            yield from arriving
            values, keys, queries = (tensors for arrival in arriving for tensors in arrival.wait())
            work.take_heads(chunk, values, keys)
            work.compute(chunk, queries)
        return (yield from work.gather())

    return attend


def pipesp_paper(exchange: UlyssesExchange, by_head: UlyssesExchange, kernel: Kernel = sdpa) -> Attend:
    """The paper's own form (its Algorithm 1): all comes in first, then head by head is computed and sent.

    exchange: in one chunk. by_head: of the same shares, in as many chunks as a rank has heads.
    """

    def attend(layer: int, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        send, rope, (whole,) = exchange.send, layout.rope, exchange.chunks
        value = next(projection)
        arrivals = [start([send(whole.heads, value)])]
        arrivals.append(start([send(whole.heads, rope.apply(next(projection)))]))
        arrivals.append(start([send(whole.queries, rope.apply(next(projection)))]))
        yield from arrivals
        (values,), (keys,), (queries,) = (arrival.wait() for arrival in arrivals)

        work = Work(by_head, kernel, like=value)
        work.take_heads(whole, values, keys)
        for chunk in by_head.chunks:
            work.compute(chunk, [_rows(whole, queries, block) for block in chunk.work])
        return (yield from work.gather())

    return attend


class Work:
    """One rank's work on one attention: heads as they come, results as they are computed."""

    def __init__(self, exchange: UlyssesExchange, kernel: Kernel, like: Tensor) -> None:
        self._exchange, self._kernel, self._like = exchange, kernel, like
        self._heads: dict[int, tuple[int, Tensor, Tensor]] = {}
        self._leaving: list[Arrival] = []
        self._attended = torch.empty_like(like)

    def take_heads(self, chunk: Chunk, values: list[Tensor], keys: list[Tensor]) -> None:
        """values, keys: [B, S, heads, D] of the chunk's new heads; of more tokens than attend, if need be."""
        first, last = chunk.new_heads.first_head, chunk.new_heads.last_head
        for head in range(first, last):
            self._heads[head] = first, values[0], keys[0]

    def compute(self, chunk: Chunk, queries: list[Tensor]) -> None:
        """Attend and send the results; queries: [B, rows, heads, D] for each of the chunk's blocks."""
        attended = []
        for block, query in zip(chunk.work, queries, strict=True):
            first, values, keys = self._heads[block.first_head]
            heads = slice(block.first_head - first, block.last_head - first)
            rows = self._exchange.shares.num_rows
            whole = block.stop - block.start == rows
            part = partial(some_rows, self._kernel, start=block.start, num_rows=rows)
            compute = self._kernel if whole else part
            attended.append(compute(query, keys[:, :, heads], values[:, :, heads]))
        into = self._exchange.held(self._attended)
        self._leaving.append(start([chunk.results.move(attended, self._like, into)]))

    def gather(self) -> Generator[Wait, None, Tensor]:
        """The attended values [B, S, H, D] of this rank's tokens, once all results are here."""
        for arrival in self._leaving:
            yield arrival
            arrival.wait()
        return self._attended


def _rows(chunk: Chunk, queries: list[Tensor], part: Box) -> Tensor:
    """The rows of `part`, which lie in one of the chunk's blocks, whose queries are given."""
    for block, query in zip(chunk.work, queries, strict=True):
        if block.intersect(part) == part:
            rows = slice(part.start - block.start, part.stop - block.start)
            return query[:, rows, part.first_head - block.first_head : part.last_head - block.first_head]
    raise ValueError(f"{part} is in none of {chunk.work}")
