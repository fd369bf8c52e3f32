"""Agreement by which all ranks of a layer pipeline end a video early, before the same round.

In a round of the block queue, every frame block in the queue takes one step. The first rank chooses the round
before which the video ends, and publishes the round's index in the processes' key-value store. The round lies
a few rounds ahead, so that every rank can look up the index before it reaches that round, or posts receives
for it. So every message that is sent is also received.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from paradit.sampling.layer_split import LayerShare
from paradit.scheduling.block_queue import BlockQueue

STEPS_AHEAD = 3
"""Largest number of steps for which a rank may have posted receives in advance. A step is one denoising step
of one frame block."""
UNWANTED = "nobody wants the rest"


class Unwanted(Exception):
    """Exception raised when a video ends early because the rest of it is no longer wanted."""


def no_blocks(error: Exception) -> Iterator[Tensor]:
    """Return an iterator that raises an exception when its first frame block is requested.

    It stands in for the latents of a video that cannot be made, or that nobody wants any more.
    """
    # Makes this function a generator, so that it raises only when it is iterated over.
    yield from ()
    raise error


class EarlyStop:
    """One rank's knowledge of whether a video ends early, why, and before which round of the block queue."""

    def __init__(self, share: LayerShare | None, queue: BlockQueue) -> None:
        """Set up one rank's knowledge of an early end of the next video; no early end is known yet.

        share: this rank's part in the layer pipeline; None for one process. queue: the video's block queue.
        """
        self._world, self._queue = share.world if share else None, queue
        # The store keeps the keys of earlier videos, so each video needs a key of its own.
        self._key = f"end of video {next(share.videos)} of {share.world.ranks}" if share else ""
        self._rounds = math.inf
        self._looked = -1
        self.reason = ""
        """Reason why the video ends early; empty as long as this rank knows of no early end."""

    def request(self, reason: str, round: int) -> None:
        """Publish that the video ends early, why, and before which round all ranks stop denoising.

        In a round, every frame block in the block queue takes one step. The round is chosen here, so late
        that no rank has begun it. Called at most once, by the first rank. reason: why the video ends. round:
        index of the latest round that this rank has begun.
        """
        self.reason = reason
        if self._world is None:
            # A single process has no messages in flight: it ends at once.
            self._rounds = 0
            return
        ahead, end = 0, round + 1
        # Receives for the next STEPS_AHEAD steps may be posted already, so the rounds of these steps take
        # place.
        while ahead < STEPS_AHEAD and self._queue.active(end):
            ahead += len(self._queue.active(end))
            end += 1
        # The next round may have begun, too.
        self._rounds = max(end, round + 2)
        self._world.publish(self._key, f"{self._rounds} {reason}")

    def goes_on(self, round: int) -> bool:
        """Return whether a round of the block queue takes place; False if the video ends before that round.

        round: index of the round. Ranks other than the first look up in the key-value store whether the video
        ends early.
        """
        if self._world is not None and self._world.rank > 0 and round > self._looked and not self.reason:
            # Ask only once per round, because every look-up is a round trip to the store.
            self._looked = round
            if self._world.is_published(self._key):
                rounds, self.reason = self._world.lookup(self._key).split(maxsplit=1)
                self._rounds = int(rounds)
        return round < self._rounds

    def check(self) -> None:
        """Raise an exception if the video has ended early.

        The exception is Unwanted if nobody wants the rest of the video, and FloatingPointError if latents
        became non-finite (inf or NaN). Called after the last round.
        """
        if self.reason == UNWANTED:
            raise Unwanted
        if self.reason:
            raise FloatingPointError(self.reason)
