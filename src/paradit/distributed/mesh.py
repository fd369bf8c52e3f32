"""Grid of the ranks that denoise a video: guidance branches x ranks that share a branch's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paradit.distributed.transport import Transport
from paradit.distributed.world import World

Groups = Sequence[Sequence[int]]
"""Partition of ranks into groups, each rank in exactly one; all ranks list the groups in the same order."""


class Sharers:
    """Ranks that share the attention of one guidance branch, with this rank's connection to the others."""

    def __init__(self, transport: Transport, divide: Callable[[Groups], Transport] | None = None) -> None:
        """Keep this rank's connection to the ranks that share its attention.

        transport: the connection. divide: function that divides these ranks into groups, and returns the
        connection within this rank's group; None: they cannot be divided.
        """
        self.transport, self._divide = transport, divide

    def among(self, groups: Groups) -> Transport:
        """Divide these ranks into groups, and return the connection within this rank's group.

        groups: the ranks of each group. The connection numbers the ranks in the order of this list. All ranks
        call this together. Raises ValueError if these ranks cannot be divided.
        """
        if self._divide is None:
            raise ValueError("these ranks cannot be divided into groups")
        return self._divide(groups)


class Mesh:
    """Assignment of n ranks to guidance branches, with connections within each branch and across branches.

    With `cfg_degree` 2, the first half of the ranks computes the first branch, and the other half the second
    branch. With `cfg_degree` 1, all ranks compute both branches. Every rank must create a Mesh, with the same
    degree. Raises ValueError if the degree does not divide n.
    """

    def __init__(self, world: World, cfg_degree: int = 1) -> None:
        if world.size % cfg_degree:
            raise ValueError(f"{world.size} ranks do not divide into {cfg_degree} branches")
        self.world, self.cfg_degree = world, cfg_degree
        self._size = size = world.size // cfg_degree
        self.cfg_rank, self.rank = divmod(world.rank, size)
        ranks = range(size)
        self.branch = self._among([list(ranks)])
        """Connection among the ranks that share the tokens of this rank's guidance branch."""
        self.cfg = self._own([[branch * size + rank for branch in range(cfg_degree)] for rank in ranks])
        """Connection among the ranks that hold the same tokens in different guidance branches."""
        self.sharers = Sharers(self.branch, self._among)
        """Ranks that share the tokens of this rank's guidance branch, numbered within the branch."""

    def _among(self, groups: Groups) -> Transport:
        """Divide each guidance branch's ranks into groups; return the connection within this rank's group.

        groups: the ranks of each group, numbered within the branch; all branches are divided alike.
        """
        starts = range(0, self.world.size, self._size)
        return self._own([[first + rank for rank in group] for first in starts for group in groups])

    def _own(self, groups: Groups) -> Transport:
        # Groups are disjoint and cover all ranks, so this rank is in exactly one.
        (transport,) = [each for each in self.world.transports(groups) if each is not None]
        return transport
