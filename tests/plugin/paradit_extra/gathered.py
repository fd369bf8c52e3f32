"""Every rank attends with its own queries to all keys and values, which are gathered from all ranks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator
from typing import TYPE_CHECKING

from paradit.attention.registry import Choice, Form
from paradit.planner.events import Compute, Post, Step, Wait

if TYPE_CHECKING:
    from torch import Tensor

    from paradit.attention.base import Attend, Kernel, Layout, Projection, Site
    from paradit.attention.base import Wait as Arrival
    from paradit.distributed.mesh import Sharers
    from paradit.distributed.shares import Shares
    from paradit.distributed.transport import Transport
    from paradit.planner.step import Branch, Layer


def gathered(shares: Shares, transport: Transport, kernel: Kernel) -> Attend:
    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Arrival, None, Tensor]:  # noqa: ARG001
        import torch

        value, key = next(projection), layout.rope.apply(next(projection))
        both = torch.cat([key, value], dim=-1)
        mine = both[:, : shares.tokens[transport.rank]].contiguous()  # what follows, every rank has
        batch, _, heads, depth = both.shape
        sizes = [batch * tokens * heads * depth for tokens in shares.tokens]
        arrival = transport.start([mine.flatten()] * transport.num_ranks, sizes)
        query = layout.rope.apply(next(projection))
        yield arrival
        parts = [part.view(batch, -1, heads, depth) for part in arrival.wait() if part.numel()]
        keys, values = torch.cat([*parts, both[:, mine.shape[1] :]], dim=1).chunk(2, dim=-1)
        return kernel(query, keys, values)

    return attend


class Gathered(Form):
    name = "gathered"
    help = "Queries stay; all keys and values are gathered everywhere."
    exactness = "exact, up to rounding"
    compared = True

    def join(self, sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG002
        return lambda shares: gathered(shares, sharers.transport, kernel)

    def layer(self, branch: Branch, choice: Choice) -> Layer:  # noqa: ARG002
        shares, ranks = branch.shares, range(branch.shares.num_ranks)
        size = [2 * branch.row_bytes * tokens * shares.num_heads for tokens in shares.tokens]
        message = branch.message(
            "keys and values", branch.ranks, [[size[i] * (i != j) for j in ranks] for i in ranks]
        )

        def layer(rank: int, key: Hashable) -> Iterator[Step]:
            cost = branch.costs[rank]
            yield Compute("project", 2 * cost.value)
            yield Post((key, "kv"), message)
            yield Compute("project", cost.value)
            yield Wait((key, "kv"))
            yield branch.attention(rank, (shares.tokens[rank] + shares.num_replicated) * shares.num_heads)
            yield Compute("finish", cost.finish)

        return layer


GATHERED = Gathered()
