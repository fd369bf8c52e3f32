"""Early end of a video on a layer pipeline: all ranks end before the same round, and no message is left over.

The first rank publishes the round in the store. No rank waits for it: the round lies so far ahead that a rank
that reaches it, or posts receives for it, has already received messages sent after it was published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from paradit.distributed.world import World
from paradit.scheduling.block_queue import BlockQueue

STEPS_AHEAD = 3
"""Largest number of steps of frame blocks for which a rank may have posted receives although no message of
these steps has arrived."""
UNWANTED = "nobody wants the rest"


class Unwanted(Exception):
    """Error raised when a video ends early because the rest of it is no longer wanted."""


def no_blocks() -> Iterator[Tensor]:
    """Raise Unwanted when the first block is asked for: stands in for a video that is not wanted at all."""
    yield from ()
    raise Unwanted


class EarlyEnd:
    """One rank's view of a video's early end: whether there is one, why, and before which round."""

    def __init__(self, world: World | None, word: str, queue: BlockQueue) -> None:
        """Start with no early end known.

        world: the ranks of the pipeline; None for one process. word: key in the store, unique to this video
        and the same on all ranks.
        """
        self._world, self._word, self._queue = world, word, queue
        self._rounds = math.inf
        self._looked = -1
        self.reason = ""
        """Reason why the video ends early; empty if, as far as this rank knows, it does not."""

    def tell(self, reason: str, round: int) -> None:
        """Publish the reason for an early end, and the round before which all ranks end.

        The first rank calls it, once. round: the round that it began last; it may have come to the next one.
        """
        self.reason = reason
        if self._world is None:
            self._rounds = 0
            return
        ahead, end = 0, round + 1
        while ahead < STEPS_AHEAD and self._queue.active(end):
            ahead += len(self._queue.active(end))
            end += 1
        self._rounds = max(end, round + 2)
        self._world.tell(self._word, f"{self._rounds} {reason}")

    def goes_on(self, round: int) -> bool:
        """Return whether a round takes place; ranks except the first look this up in the store."""
        if self._world is not None and self._world.rank > 0 and round > self._looked and not self.reason:
            self._looked = round
            if self._world.told(self._word):
                rounds, self.reason = self._world.word(self._word).split(maxsplit=1)
                self._rounds = int(rounds)
        return round < self._rounds

    def check(self) -> None:
        """Raise Unwanted or FloatingPointError if the video has ended early; called after the last round."""
        if self.reason == UNWANTED:
            raise Unwanted
        if self.reason:
            raise FloatingPointError(self.reason)
