"""Attention as in the PipeSP paper (arXiv 2511.12056): all data arrive first; results leave head by head."""

from __future__ import annotations

from collections.abc import Callable, Generator

from torch import Tensor

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
from paradit.attention.chunked import Work
from paradit.attention.registry import Choice
from paradit.distributed.exchange import Chunk, UlyssesExchange
from paradit.distributed.mesh import Sharers
from paradit.distributed.redistribution import start
from paradit.distributed.shares import Box, Shares


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG001
    """Set up attention as in PipeSP's paper; return a function that makes this rank's attention function.

    The returned function is called for each division of an attention among the ranks. It takes a `Shares`:
    which tokens each rank holds, and which part of the attention it computes.
    """

    def build(shares: Shares) -> Attend:
        by_head = UlyssesExchange(shares, sharers.transport, shares.most_heads)
        return pipesp_paper(UlyssesExchange(shares, sharers.transport), by_head, kernel)

    return build


def pipesp_paper(exchange: UlyssesExchange, by_head: UlyssesExchange, kernel: Kernel) -> Attend:
    """Return an attention function that sends each head's results as soon as they are computed.

    exchange: plan by which queries, keys and values travel, all in one chunk. by_head: plan by which the
    results travel back, in as many chunks as a rank has heads. Both plans divide tokens and attention among
    the ranks alike.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        send, rope, (whole,) = exchange.send, layout.rope, exchange.chunks
        value = next(projection)
        arrivals = [start([send(whole.heads, value)])]
        arrivals.append(start([send(whole.heads, rope.apply(next(projection)))]))
        arrivals.append(start([send(whole.queries, rope.apply(next(projection)))]))
        # Unlike in `chunked`, nothing is computed before everything has arrived.
        yield from arrivals
        (values,), (keys,), (queries,) = (arrival.wait() for arrival in arrivals)

        work = Work(by_head, kernel, like=value, pattern=site.pattern)
        work.take_heads(whole, values, keys)
        for chunk in by_head.chunks:
            work.compute(chunk, [_rows(whole, queries, block) for block in chunk.work])
        return (yield from work.gather())

    return attend


def _rows(chunk: Chunk, queries: list[Tensor], part: Box) -> Tensor:
    """Return the queries of one rectangle (tokens x heads), as a slice of the tensor that contains them.

    chunk, queries: a chunk, and its queries as one tensor for each of the rectangles that this rank computes
    in it. part: the rectangle to return, which lies within one of those. Raises ValueError if it does not.
    """
    for block, query in zip(chunk.work, queries, strict=True):
        if block.intersect(part) == part:
            rows = slice(part.start - block.start, part.stop - block.start)
            return query[:, rows, part.first_head - block.first_head : part.last_head - block.first_head]
    raise ValueError(f"{part} is not in any range of {chunk.work}")
