"""USP (arXiv 2405.07719): Ulysses within groups of ranks, ring attention among the groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from paradit.attention.registry import Asked, Form
from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS
from paradit.config.options import Option, decode


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Options of USP attention: how ranks of a guidance branch form Ulysses groups, and the groups a ring."""

    ring_degree: Annotated[
        int | None,
        Option(
            help="Number of groups of ranks in usp's ring. [default: 2]", metavar="N", least=1, most=MAX_RANKS
        ),
    ] = None
    mesh: Annotated[
        Literal["ring,ulysses", "ulysses,ring"],
        Option(
            help="Order of usp's axes: ring,ulysses or ulysses,ring; neighbouring ranks are on the last one. "
            "[default: ring,ulysses]",
            metavar="AXES",
        ),
    ] = "ring,ulysses"

    @property
    def degree(self) -> int:
        return self.ring_degree or 2

    def groups(self, ranks: int) -> list[list[int]]:
        """Return the ranks of each Ulysses group, in the order of the ring.

        By default, neighbouring ranks form a Ulysses group. This is USP's usual order, in which the ring
        crosses machines. With mesh "ulysses,ring", neighbouring ranks form a ring instead.
        """
        size = ranks // self.degree
        if self.mesh == "ulysses,ring":
            return [[r for r in range(ranks) if r % self.degree == group] for group in range(self.degree)]
        return [list(range(group * size, (group + 1) * size)) for group in range(self.degree)]


class Usp(Form):
    name = "usp"
    help = "Ulysses within groups of ranks, and a ring between the groups."
    exactness = "exact up to rounding: a row's partial sums are added in another order"
    options = Grid
    compared = needs_lse = True
    joined_by = "paradit.attention.usp:join"
    timed_by = "paradit.attention.timing.rings:usp_layer"

    def misplaced(self, attention: str) -> str:
        return f"ring_degree and mesh need attention {self.name}, got {attention!r}: leave them out"

    def check(self, asked: Asked) -> None:
        super().check(asked)
        degree = decode(Grid, asked.options).degree
        if asked.ranks % degree:
            able = ", ".join(str(n) for n in range(1, asked.ranks + 1) if asked.ranks % n == 0)
            raise InputError(
                f"{asked.ranks} ranks cannot be divided into a ring of {degree}: use a ring_degree of {able}"
            )


USP = Usp()
