"""PipeSP as its paper has it (arXiv 2511.12056, Algorithm 1): all comes in, then head by head leaves."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from paradit.attention.chunked import Work, all_in_first
from paradit.attention.registry import Choice, Form

if TYPE_CHECKING:
    from torch import Tensor

    from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
    from paradit.distributed.exchange import Chunk, UlyssesExchange
    from paradit.distributed.mesh import Sharers
    from paradit.distributed.shares import Box, Shares
    from paradit.planner.step import Branch, Layer


def pipesp_paper(exchange: UlyssesExchange, by_head: UlyssesExchange, kernel: Kernel) -> Attend:
    """Attention in which each head's results leave as soon as they are computed.

    exchange: in one chunk. by_head: of the same shares, in as many chunks as a rank has heads.
    """
    from paradit.distributed.redistribution import start

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
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


def _rows(chunk: Chunk, queries: list[Tensor], part: Box) -> Tensor:
    """The rows of `part`, which lie in one of the chunk's blocks, whose queries are given."""
    for block, query in zip(chunk.work, queries, strict=True):
        if block.intersect(part) == part:
            rows = slice(part.start - block.start, part.stop - block.start)
            return query[:, rows, part.first_head - block.first_head : part.last_head - block.first_head]
    raise ValueError(f"{part} is in none of {chunk.work}")


def heads_of_a_rank(shares: Shares) -> int:
    """The most heads that a rank works on, begun ones counted whole."""
    return -(-max(shares.work) // shares.num_rows)


class PipeSPPaper(Form):
    name = "pipesp-paper"
    help = "Everything travels in, then head by head is computed and sent; for comparison with its paper."
    exactness = "exact, with the bits of one process"

    def join(self, sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG002
        from paradit.distributed.exchange import UlyssesExchange

        def build(shares: Shares) -> Attend:
            by_head = UlyssesExchange(shares, sharers.transport, heads_of_a_rank(shares))
            return pipesp_paper(UlyssesExchange(shares, sharers.transport), by_head, kernel)

        return build

    def layer(self, branch: Branch, choice: Choice) -> Layer:  # noqa: ARG002
        return all_in_first(branch, heads_of_a_rank(branch.shares))


PIPESP_PAPER = PipeSPPaper()
