"""How the ranks of a layer pipeline end a video early: all before the same round, with no message left over.

The first rank leaves word of the round. Nobody waits for such a word: it lies so far ahead that whoever comes
to that round, or makes ready for its messages, has had messages that were sent after it was left.
"""

from __future__ import annotations

import math

from paradit.distributed.world import World

ROUNDS_AHEAD = 5
"""From the round that the first rank has begun last: it may be at the next one, and receives are posted up to
three block-steps ahead, which are three rounds where each has but one."""


class EarlyEnd:
    """One rank's view of it."""

    def __init__(self, world: World | None, word: str) -> None:
        """word: the same on all ranks, of this video alone."""
        self._world, self._word = world, word
        self._rounds = math.inf
        self._looked = -1
        self.reason = ""
        """Why the video ends early; empty: it does not, as far as is known."""

    def tell(self, reason: str, round: int) -> None:
        """The first rank calls it, once; it has begun `round` last."""
        assert self._world is not None
        self.reason, self._rounds = reason, round + ROUNDS_AHEAD
        self._world.tell(self._word, f"{self._rounds} {reason}")

    def goes_on(self, round: int) -> bool:
        """Whether there is such a round."""
        if self._world is not None and self._world.rank > 0 and round > self._looked and not self.reason:
            self._looked = round
            if self._world.told(self._word):
                rounds, self.reason = self._world.word(self._word).split(maxsplit=1)
                self._rounds = int(rounds)
        return round < self._rounds
