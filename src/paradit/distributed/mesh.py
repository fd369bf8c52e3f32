"""The ranks of one denoising group as a grid: guidance branches x the ranks that share a branch's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paradit.distributed.transport import Transport
from paradit.distributed.world import World

Groups = Sequence[Sequence[int]]
"""Ranks in groups, so that each is in one of them; in an order that all agree on."""


class Sharers:
    """Ranks that share a branch's attention, as one of them sees them."""

    def __init__(self, transport: Transport, divide: Callable[[Groups], Transport] | None = None) -> None:
        """transport: among all of them. divide: what `among` does; None: these cannot be divided."""
        self.transport, self._divide = transport, divide

    def among(self, groups: Groups) -> Transport:
        """A transport among the ranks of this rank's group, in their order; all ranks call it together."""
        if self._divide is None:
            raise ValueError("these ranks cannot be divided into groups")
        return self._divide(groups)


class Mesh:
    """Ranks 0 to n/cfg - 1 compute the first branch, the next as many the second; or all compute both.

    Every rank must make it, with the same degree.
    """

    def __init__(self, world: World, cfg_degree: int = 1) -> None:
        if world.size % cfg_degree:
            raise ValueError(f"{world.size} ranks do not divide into {cfg_degree} branches")
        self.world, self.cfg_degree = world, cfg_degree
        self._size = size = world.size // cfg_degree
        self.cfg_rank, self.rank = divmod(world.rank, size)
        ranks = range(size)
        self.branch = self._among([list(ranks)])
        """Among the ranks that share a branch's tokens."""
        self.cfg = self._own([[branch * size + rank for branch in range(cfg_degree)] for rank in ranks])
        """Among the ranks with the same tokens of different branches."""
        self.sharers = Sharers(self.branch, self._among)
        """The ranks that share a branch's tokens, counted within it."""

    def _among(self, groups: Groups) -> Transport:
        """Among the ranks of a group of this rank's branch; the other branches are divided alike."""
        starts = range(0, self.world.size, self._size)
        return self._own([[first + rank for rank in group] for first in starts for group in groups])

    def _own(self, groups: Groups) -> Transport:
        (transport,) = [each for each in self.world.transports(groups) if each is not None]
        return transport
