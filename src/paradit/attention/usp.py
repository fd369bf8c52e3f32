"""USP attention, as it runs on ranks: Ulysses within groups, ring attention among them (arXiv 2405.07719)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from torch import Tensor, empty_like

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
from paradit.attention.forms.usp import Grid
from paradit.attention.registry import Choice
from paradit.attention.ring_exchange import Rotation
from paradit.config.options import decode
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.mesh import Sharers
from paradit.distributed.redistribution import start
from paradit.distributed.shares import Shares
from paradit.distributed.transport import Transport


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG001
    """Set up USP attention on ranks; return a function that makes this rank's attention function.

    The ranks are divided into Ulysses groups and rings. The returned function is called for each division of
    an attention among the ranks. It takes a `Shares`, of which USP uses the tokens that each rank holds.
    """
    rank, num_ranks = sharers.transport.rank, sharers.transport.num_ranks
    groups = decode(Grid, choice.options).groups(num_ranks)
    # The i-th ranks of all groups work on the same heads, so they form a ring.
    within = sharers.among(groups)
    ring = sharers.among(list(zip(*groups, strict=True)))
    (mine,) = [number for number, group in enumerate(groups) if rank in group]

    def build(shares: Shares) -> Attend:
        tokens = [tuple(shares.tokens[rank] for rank in group) for group in groups]
        # Whatever tokens each of its ranks holds, a group divides the rows of all of them equally.
        rows = sum(tokens[mine]) + shares.num_replicated
        own = Shares(
            num_heads=shares.num_heads,
            tokens=tokens[mine],
            work=Shares.equal(rows, shares.num_heads, len(groups[mine])).work,
            num_replicated=shares.num_replicated,
        )
        exchange = UlyssesExchange(own, within, whole_heads=True)
        return usp(exchange, [sum(group) for group in tokens], ring)

    return build


def usp(exchange: UlyssesExchange, lengths: Sequence[int], transport: Transport) -> Attend:
    """Return a function that computes USP attention: Ulysses within a group of ranks, ring among the groups.

    exchange: plan of what the ranks of this rank's Ulysses group send to each other; it brings a rank the
    data of all its heads in one chunk. lengths: number of tokens that each Ulysses group holds. transport:
    connection among the ranks that compute the same heads, one rank of each group.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        send, rope, (chunk,) = exchange.send, layout.rope, exchange.chunks
        value = next(projection)
        coming = [start([send(chunk.heads, value)])]
        key, query = rope.apply(next(projection)), rope.apply(next(projection))
        coming.append(start([send(chunk.heads, key), send(chunk.queries, query)]))
        yield from coming
        # Values came in one exchange, keys and queries in the other.
        (values,), (keys,), queries = (tensors for arrival in coming for tensors in arrival.wait())

        first = chunk.new_heads.first_head
        heads = [slice(block.first_head - first, block.last_head - first) for block in chunk.work]
        attended = yield from Rotation(keys, values, lengths, transport).attend(queries, heads)
        out = empty_like(value)
        results = start([chunk.results.move(attended, like=value, into=exchange.held(out))])
        yield results
        results.wait()
        return out

    return attend
