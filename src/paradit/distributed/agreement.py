"""Tasks, such as decoding, that several ranks attempt together: if one rank fails, all ranks stop."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from paradit.distributed.world import World

FINE, NO_MEMORY, FAILED = range(3)
"""Outcomes of one rank's part in a task that ranks share, from best to worst; all ranks act on the worst."""


class Ended(Exception):
    """Error raised if another rank cannot continue a task that ranks attempt together.

    The error's argument is the worst outcome of any rank, NO_MEMORY or FAILED.
    """


class Agreement:
    """Agreement of ranks that share a task, such as decoding, on whether all continue it, or all end it.

    An instance serves one attempt at the task. Ranks agree twice: in `gather`, before they send anything, and
    by `agree`, once they have finished. A rank that fails calls `report` instead of the next of these. If
    `agree` raises Ended, or `report` returns a failure, all messages of the attempt have arrived.
    """

    def __init__(self, world: World | None, device: torch.device) -> None:
        """Begin an attempt at a task.

        world: the ranks that attempt the task together; None: this process alone. device: device of the
        tensors that ranks send.
        """
        self.rank, self.num_ranks = (world.rank, world.size) if world else (0, 1)
        self._world, self._device = world, device
        self._leaving: tuple[dist.Work, Tensor] | None = None

    def agree(self) -> None:
        """Report that this rank can continue the shared task, and wait until all other ranks have reported.

        Raises Ended if one of them cannot continue.
        """
        if outcome := self.report(FINE):
            raise Ended(outcome)

    def report(self, outcome: int) -> int:
        """Report this rank's outcome of a shared task to all ranks, and return the worst outcome of any rank.

        All ranks call this together, directly or through `agree`. outcome: FINE, NO_MEMORY or FAILED.
        """
        if self._world is None:
            return outcome
        everyone = self._world.transport().all_gather(torch.tensor([outcome], device=self._device))
        if self._leaving is not None:
            self._leaving[0].wait()  # returns at once: the first rank receives it before it gets here
            self._leaving = None
        return max(int(one) for one in everyone)

    def gather(self, pieces: list[Tensor], shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[list[Tensor]]:
        """Send the tensors of all ranks to the first rank, and return them there, in one list for each rank.

        Returns an empty list on the other ranks. pieces: this rank's tensors. shapes: for each rank, the
        shapes of its tensors. Raises Ended if a rank cannot continue, for instance because it has no memory
        for its part.
        """
        if self._world is None:
            return [pieces]
        if self.rank:
            # Memory may run out here, so it is allocated before the ranks agree. After that nothing may fail,
            # because others would wait for this rank's message.
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
