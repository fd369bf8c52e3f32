"""The ranks of one denoising group as a grid: guidance branches x ring x Ulysses."""

from __future__ import annotations

from paradit.distributed.transport import Transport
from paradit.distributed.world import World


class Mesh:
    """Ranks 0 to n/cfg - 1 compute the first branch, the next as many the second; or all compute both.

    Within a branch, `ring_degree` Ulysses groups of neighbouring ranks form a ring (USP's usual order: the
    ring crosses machines); with `ring_inside`, rings of neighbouring ranks do Ulysses among each other.
    Every rank must make it, with the same degrees.
    """

    def __init__(
        self, world: World, cfg_degree: int = 1, ring_degree: int = 1, *, ring_inside: bool = False
    ) -> None:
        if world.size % (cfg_degree * ring_degree):
            raise ValueError(f"{world.size} ranks do not divide into {cfg_degree} x {ring_degree}")
        self.world, self.cfg_degree, self.ring_degree = world, cfg_degree, ring_degree
        size = world.size // cfg_degree
        self.ulysses_degree = size // ring_degree
        self.cfg_rank, self.rank = divmod(world.rank, size)
        ranks = range(size)
        if ring_inside:
            groups = [[r for r in ranks if r % ring_degree == group] for group in range(ring_degree)]
        else:
            groups = [[r for r in ranks if r // self.ulysses_degree == group] for group in range(ring_degree)]
        self.ulysses_groups = groups
        """The ranks of each Ulysses group, by their number in the branch; in the order of the ring."""
        rings = [list(column) for column in zip(*groups, strict=True)]

        def in_each_branch(groups: list[list[int]]) -> list[list[int]]:
            starts = range(0, world.size, size)
            return [[first + rank for rank in group] for first in starts for group in groups]

        self.branch = _own(world, in_each_branch([list(ranks)]))
        """Among the ranks that share a branch's tokens."""
        self.cfg = _own(world, [[branch * size + rank for branch in range(cfg_degree)] for rank in ranks])
        """Among the ranks with the same tokens of different branches."""
        self.ulysses = self.ring = self.branch
        """Among the ranks of a Ulysses group, and among those with the same heads."""
        if ring_degree > 1 and self.ulysses_degree > 1:
            self.ulysses = _own(world, in_each_branch(groups))
            self.ring = _own(world, in_each_branch(rings))


def _own(world: World, groups: list[list[int]]) -> Transport:
    (transport,) = [transport for transport in world.transports(groups) if transport is not None]
    return transport
