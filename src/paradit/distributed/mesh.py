"""The ranks of one denoising group as a grid: guidance branches x Ulysses."""

from __future__ import annotations

from paradit.distributed.transport import Transport
from paradit.distributed.world import World


class Mesh:
    """Ranks 0 to n/cfg - 1 compute the first branch, the next as many the second; or all compute both.

    Every rank must make it, with the same degree.
    """

    def __init__(self, world: World, cfg_degree: int = 1) -> None:
        if world.size % cfg_degree:
            raise ValueError(f"{world.size} ranks do not divide into {cfg_degree} branches")
        self.world, self.cfg_degree = world, cfg_degree
        self.ulysses_degree = world.size // cfg_degree
        self.cfg_rank, self.ulysses_rank = divmod(world.rank, self.ulysses_degree)
        rows = [
            [branch * self.ulysses_degree + rank for rank in range(self.ulysses_degree)]
            for branch in range(cfg_degree)
        ]
        self.ulysses = _own(world, rows)
        """Among the ranks that share a branch's tokens."""
        self.cfg = _own(world, [list(column) for column in zip(*rows, strict=True)])
        """Among the ranks with the same tokens of different branches."""


def _own(world: World, groups: list[list[int]]) -> Transport:
    (transport,) = [transport for transport in world.transports(groups) if transport is not None]
    return transport
