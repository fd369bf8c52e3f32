"""Ring attention (arXiv 2310.01889): keys and values go round, each block while the one before is computed.

Every rank keeps its queries; memory stays at two blocks of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from paradit.attention.registry import Choice, Form
from paradit.attention.rotation import Rotation, RotationTiming

if TYPE_CHECKING:
    from torch import Tensor

    from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
    from paradit.distributed.mesh import Sharers
    from paradit.distributed.shares import Shares
    from paradit.distributed.transport import Transport
    from paradit.planner.step import Branch, Layer


def ring(lengths: Sequence[int], transport: Transport) -> Attend:
    """lengths: how many tokens each rank holds; any, also none."""

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        value, key = next(projection), layout.rope.apply(next(projection))
        rotation = Rotation(key, value, lengths, transport)
        query = layout.rope.apply(next(projection))
        (attended,) = yield from rotation.attend([query], [slice(None)])
        return attended

    return attend


class Ring(Form):
    name = "ring"
    help = "Queries stay; keys and values go round, each block while the one before is computed."
    exactness = "exact, up to rounding: a row's parts are added in another order"
    compared = needs_lse = True

    def join(self, sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG002
        return lambda shares: ring(shares.tokens, sharers.transport)

    def layer(self, branch: Branch, choice: Choice) -> Layer:  # noqa: ARG002
        return RotationTiming(branch, [[rank] for rank in range(branch.shares.num_ranks)]).layer


RING = Ring()
