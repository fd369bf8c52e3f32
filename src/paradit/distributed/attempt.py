"""Ranks that work on one thing together, and end it together where one of them cannot go on."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from paradit.distributed.world import World

FINE, NO_MEMORY, FAILED = range(3)
"""How an attempt goes on a rank; the worst counts for all."""


class Ended(Exception):
    """Another rank cannot go on with an attempt: NO_MEMORY or FAILED, as its argument."""


class Attempt:
    """One try at something. Ranks that share it go on together or end it together.

    Each of them calls `agree` (in `gather`, before anything is sent, and once at the end), or `tell` where it
    fails; nothing of the attempt is under way any more after an `agree` or `tell` that does not go on.
    """

    def __init__(self, world: World | None, device: torch.device) -> None:
        """world: the ranks that share it; None: this one alone."""
        self.rank, self.num_ranks = (world.rank, world.size) if world else (0, 1)
        self._world, self._device = world, device
        self._leaving: tuple[dist.Work, Tensor] | None = None

    def agree(self) -> None:
        """This rank can go on; raises Ended where another cannot."""
        if outcome := self.tell(FINE):
            raise Ended(outcome)

    def tell(self, outcome: int) -> int:
        """The worst of all ranks' outcomes, of which this rank's is `outcome`."""
        if self._world is None:
            return outcome
        everyone = self._world.transport().all_gather(torch.tensor([outcome], device=self._device))
        if self._leaving is not None:
            self._leaving[0].wait()  # the first rank has taken it, or it would not have come here
            self._leaving = None
        return max(int(one) for one in everyone)

    def gather(self, pieces: list[Tensor], shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[list[Tensor]]:
        """Every rank's pieces, by rank, on the first one; nothing on the others.

        shapes: of the pieces of each rank. All memory is taken before the ranks agree to go on.
        """
        if self._world is None:
            return [pieces]
        if self.rank:
            message = torch.cat([piece.flatten() for piece in pieces]) if pieces else None
            self.agree()
            if message is not None:
                self._leaving = self._world.send(message, 0), message
            return []
        sizes = [[prod(shape) for shape in of_rank] for of_rank in shapes]
        messages = [pieces[0].new_empty(sum(of_rank)) for of_rank in sizes[1:]]
        self.agree()
        for rank, message in enumerate(messages, start=1):
            if message.numel():
                self._world.receive(message, rank)
        others = [
            [part.view(shape) for part, shape in zip(torch.split(message, size), shape_of, strict=True)]
            for message, size, shape_of in zip(messages, sizes[1:], shapes[1:], strict=True)
        ]
        return [pieces, *others]
