"""Ring attention, as it runs on ranks: keys and values pass around a ring of ranks (arXiv 2310.01889)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from torch import Tensor

from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
from paradit.attention.registry import Choice
from paradit.attention.ring_exchange import Rotation
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares
from paradit.distributed.transport import Transport


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG001
    """Set up ring attention on ranks; return a function that makes this rank's attention function.

    The returned function is called for each division of an attention among the ranks. It takes a `Shares`, of
    which ring attention uses only how many tokens each rank holds.
    """
    return lambda shares: ring(shares.tokens, sharers.transport)


def ring(lengths: Sequence[int], transport: Transport) -> Attend:
    """Return a function that computes ring attention, in which keys and values pass around a ring of ranks.

    lengths: number of tokens that each rank holds, which may differ or be zero. transport: connection among
    the ranks of the ring, in the order of the ring.
    """

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        value, key = next(projection), layout.rope.apply(next(projection))
        rotation = Rotation(key, value, lengths, transport)  # sends them while queries are projected
        query = layout.rope.apply(next(projection))
        (attended,) = yield from rotation.attend([query], [slice(None)])
        return attended

    return attend
