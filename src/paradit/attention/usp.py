"""USP (arXiv 2405.07719): Ulysses among some ranks, whose heads then go round in a ring among others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from paradit.attention.registry import Asked, Choice, Form
from paradit.attention.rotation import Rotation, RotationTiming
from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS
from paradit.config.options import Option, decode
from paradit.distributed.shares import Shares

if TYPE_CHECKING:
    from torch import Tensor

    from paradit.attention.base import Attend, Kernel, Layout, Projection, Site, Wait
    from paradit.distributed.exchange import UlyssesExchange
    from paradit.distributed.mesh import Sharers
    from paradit.distributed.transport import Transport
    from paradit.planner.step import Branch, Layer


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How the ranks of a branch form Ulysses groups, and these a ring."""

    ring_degree: Annotated[
        int | None,
        Option(
            help="Groups of ranks that form usp's ring. [default: 2]", metavar="N", least=1, most=MAX_RANKS
        ),
    ] = None
    mesh: Annotated[
        Literal["ring,ulysses", "ulysses,ring"],
        Option(
            help="usp's axes, that of neighbouring ranks last: ring,ulysses or ulysses,ring. [default: "
            "ring,ulysses]",
            metavar="AXES",
        ),
    ] = "ring,ulysses"

    @property
    def degree(self) -> int:
        return self.ring_degree or 2

    def groups(self, ranks: int) -> list[list[int]]:
        """The ranks of each Ulysses group, in the order of the ring.

        Neighbouring ranks form a group (USP's usual order: the ring crosses machines), or a ring.
        """
        size = ranks // self.degree
        if self.mesh == "ulysses,ring":
            return [[r for r in range(ranks) if r % self.degree == group] for group in range(self.degree)]
        return [list(range(group * size, (group + 1) * size)) for group in range(self.degree)]


def usp(exchange: UlyssesExchange, lengths: Sequence[int], transport: Transport) -> Attend:
    """exchange: among the ranks of this rank's Ulysses group, which gives all of a rank's heads at once.

    lengths: how many tokens each Ulysses group holds; transport: among the ranks with the same heads.
    """
    from torch import empty_like

    from paradit.distributed.redistribution import start

    def attend(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        send, rope, (chunk,) = exchange.send, layout.rope, exchange.chunks
        value = next(projection)
        coming = [start([send(chunk.heads, value)])]
        key, query = rope.apply(next(projection)), rope.apply(next(projection))
        coming.append(start([send(chunk.heads, key), send(chunk.queries, query)]))
        yield from coming
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


class Usp(Form):
    name = "usp"
    help = "Ulysses in groups of ranks, whose heads go round in a ring of groups."
    exactness = "exact, up to rounding: a row's parts are added in another order"
    options = Grid
    compared = needs_lse = True

    def misplaced(self, attention: str) -> str:
        return f"ring_degree and mesh are {self.name}'s, and attention is {attention!r}"

    def check(self, asked: Asked) -> None:
        super().check(asked)
        degree = decode(Grid, asked.options).degree
        if asked.ranks % degree:
            able = ", ".join(str(n) for n in range(1, asked.ranks + 1) if asked.ranks % n == 0)
            raise InputError(
                f"{asked.ranks} ranks do not divide into a ring of {degree}: use a ring_degree of {able}"
            )

    def join(self, sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Attend]:  # noqa: ARG002
        from paradit.distributed.exchange import UlyssesExchange

        rank, num_ranks = sharers.transport.rank, sharers.transport.num_ranks
        groups = decode(Grid, choice.options).groups(num_ranks)
        within = sharers.among(groups)
        ring = sharers.among(list(zip(*groups, strict=True)))
        (mine,) = [number for number, group in enumerate(groups) if rank in group]

        def build(shares: Shares) -> Attend:
            tokens = [tuple(shares.tokens[rank] for rank in group) for group in groups]
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

    def layer(self, branch: Branch, choice: Choice) -> Layer:
        groups = decode(Grid, choice.options).groups(branch.shares.num_ranks)
        return RotationTiming(branch, groups).layer


USP = Usp()
