"""How the ranks of a layer pipeline end a video early: all before the same round, with no message left over.

The first rank leaves word of the round. Nobody waits for such a word: the round lies so far ahead that
whoever comes to it, or makes ready for its messages, has had messages that were sent after the word was left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from paradit.distributed.world import World
from paradit.scheduling.block_queue import BlockQueue

STEPS_AHEAD = 3
"""Block-steps that a rank makes ready for, at most, beyond those whose messages it has had."""
UNWANTED = "nobody wants the rest"


class Unwanted(Exception):
    """A video has ended early since nobody wants the rest of it."""


def no_blocks() -> Iterator[Tensor]:
    """Raise Unwanted when the first block is asked for: nobody wants any."""
    yield from ()
    raise Unwanted


class EarlyEnd:
    """One rank's view of it."""

    def __init__(self, world: World | None, word: str, queue: BlockQueue) -> None:
        """word: the same on all ranks, of this video alone."""
        self._world, self._word, self._queue = world, word, queue
        self._rounds = math.inf
        self._looked = -1
        self.reason = ""
        """Why the video ends early; empty: it does not, as far as is known."""

    def tell(self, reason: str, round: int) -> None:
        """The first rank calls it, once; it has begun `round` last, and may have come to the next one."""
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
        """Whether there is such a round."""
        if self._world is not None and self._world.rank > 0 and round > self._looked and not self.reason:
            self._looked = round
            if self._world.told(self._word):
                rounds, self.reason = self._world.word(self._word).split(maxsplit=1)
                self._rounds = int(rounds)
        return round < self._rounds

    def check(self) -> None:
        """At the end of the rounds: raises FloatingPointError, or Unwanted, where it is an early one."""
        if self.reason == UNWANTED:
            raise Unwanted
        if self.reason:
            raise FloatingPointError(self.reason)
