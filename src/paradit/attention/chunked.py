"""What forms have in common whose heads travel: an exchange in chunks, the work on them, and its timing.

In one chunk this is Ulysses, in more PipeSP. Exact: every row is computed once. Importing this imports no
torch, so that the planner can.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from paradit.distributed.shares import ChunkBoxes, chunk_boxes
from paradit.planner.events import Compute, Message, Post, Step
from paradit.planner.events import Wait as WaitFor
from paradit.planner.step import Branch, Exchange, Layer

if TYPE_CHECKING:
    from torch import Tensor

    from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
    from paradit.distributed.exchange import Chunk, UlyssesExchange
    from paradit.distributed.redistribution import Arrival


def chunked(exchange: UlyssesExchange, kernel: Kernel) -> Attend:
    """Attention in the chunks of an exchange.

    All messages in are started in the order in which they are needed: nothing waits behind a later one.
    `chunked_layer` is its timing.
    """
    from paradit.distributed.redistribution import start

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
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


class Work:
    """One rank's work on one attention: heads as they come, results as they are computed."""

    def __init__(self, exchange: UlyssesExchange, kernel: Kernel, like: Tensor) -> None:
        from torch import empty_like

        self._exchange, self._kernel, self._like = exchange, kernel, like
        self._heads: dict[int, tuple[int, Tensor, Tensor]] = {}
        self._leaving: list[Arrival] = []
        self._attended = empty_like(like)

    def take_heads(self, chunk: Chunk, values: list[Tensor], keys: list[Tensor]) -> None:
        """values, keys: [B, S, heads, D] of the chunk's new heads; of more tokens than attend, if need be."""
        first, last = chunk.new_heads.first_head, chunk.new_heads.last_head
        for head in range(first, last):
            self._heads[head] = first, values[0], keys[0]

    def compute(self, chunk: Chunk, queries: list[Tensor]) -> None:
        """Attend and send the results; queries: [B, rows, heads, D] for each of the chunk's blocks."""
        from paradit.attention.local import some_rows
        from paradit.distributed.redistribution import start

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


def chunked_layer(branch: Branch, num_chunks: int = 1, *, interleaved: bool = False) -> Layer:
    """A layer whose attention is `chunked`.

    interleaved: another stream's messages travel at any time.
    """
    chunks = chunk_boxes(branch.shares, num_chunks)
    heads = [[[box] for box in chunk.new_heads] for chunk in chunks]
    value = Exchange(branch, branch.inward("values", heads[0]))
    # A chunk's keys and queries, or with its values, are one message.
    together = [
        Exchange(
            branch,
            branch.inward("keys and queries", *[heads[index]] * (1 if index == 0 else 2), chunk.work),
        )
        for index, chunk in enumerate(chunks)
    ]
    results = [Exchange(branch, branch.results(chunk.work)) for chunk in chunks]
    beside = _beside(value, together, results, interleaved=interleaved)

    def layer(rank: int, key: Hashable) -> Iterator[Step]:
        cost = branch.costs[rank]
        yield Compute("project", cost.value)
        yield from value.post(rank, (key, "v"))
        yield Compute("project", 2 * cost.value)
        for index, message in enumerate(together):
            yield from message.post(rank, (key, "in", index))
        yield from value.wait(rank, (key, "v"))
        for index, chunk in enumerate(chunks):
            yield from together[index].wait(rank, (key, "in", index))
            yield branch.attention(rank, sum(map(len, chunk.work[rank])), beside[index])
            yield from results[index].post(rank, (key, "out", index))
        for index, result in enumerate(results):
            yield from result.wait(rank, (key, "out", index))
        yield Compute("finish", cost.finish)

    return layer


def _beside(
    value: Exchange, together: list[Exchange], results: list[Exchange], *, interleaved: bool
) -> list[float]:
    """Seconds for which messages travel while each chunk is computed."""
    if interleaved:  # the other stream's layer
        whole = sum(message.seconds for message in (value, *together, *results))
        return [whole / len(together)] * len(together)
    # The next chunk's way in and the last one's way out.
    return [
        sum(
            message.seconds
            for message in (*together[index + 1 : index + 2], *results[max(0, index - 1) : index])
        )
        for index in range(len(together))
    ]


def all_in_first(branch: Branch, count: int, *, whole_heads: bool = False) -> Layer:
    """A layer in which all comes in before anything is computed; results leave in `count` chunks."""
    (whole,) = chunk_boxes(branch.shares, 1, whole_heads=whole_heads)
    coming = incoming(branch, whole)
    chunks = chunk_boxes(branch.shares, count)
    results = [branch.results(chunk.work) for chunk in chunks]

    def layer(rank: int, key: Hashable) -> Iterator[Step]:
        for index, message in enumerate(coming):
            yield Compute("project", branch.costs[rank].value)
            yield Post((key, "in", index), message)
        for index in range(3):
            yield WaitFor((key, "in", index))
        for index, chunk in enumerate(chunks):
            beside = results[index - 1].seconds if index else 0.0
            yield branch.attention(rank, sum(map(len, chunk.work[rank])), beside)
            yield Post((key, "out", index), results[index])
        for index in range(count):
            yield WaitFor((key, "out", index))
        yield Compute("finish", branch.costs[rank].finish)

    return layer


def incoming(branch: Branch, whole: ChunkBoxes) -> list[Message]:
    """Values, keys and queries of all of a rank's work, each by itself."""
    heads = [[box] for box in whole.new_heads]
    return [
        branch.inward("values", heads),
        branch.inward("keys", heads),
        branch.inward("queries", whole.work),
    ]
