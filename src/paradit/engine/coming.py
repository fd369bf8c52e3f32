"""A long video's blocks on their way from the rank that denoises first to those that decode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

from paradit.distributed.channel import Channel
from paradit.sampling.early_end import Unwanted

BLOCK, ENDED, FAILED = range(3)
"""What a message is: a block, or that none follows."""


class FailedElsewhere(Exception):
    """A request has failed on the rank that denoises it, which has told of it."""


class Coming:
    """Blocks [1, C, f, h, w], fp32, as they come, and how long that takes."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        """blocks: those that are denoised here, each when it is asked for."""
        self._blocks = blocks
        self.waited = 0.0
        """Seconds in which they were asked for."""

    @property
    def denoise_seconds(self) -> float:
        return self.waited

    def __iter__(self) -> Iterator[Tensor]:
        while (block := self._next()) is not None:
            yield block

    def _next(self) -> Tensor | None:
        began = time.monotonic()
        try:
            return next(self._blocks, None)
        finally:
            self.waited += time.monotonic() - began

    def drain(self) -> None:
        """Let the others come to the video's end, or to an early one where nobody wants the rest of it."""
        with suppress(Unwanted, FailedElsewhere, FloatingPointError):
            for _ in self._blocks:
                pass


class ComingFrom(Coming):
    """Blocks that another rank sends by `send_blocks`; FailedElsewhere where it fails."""

    def __init__(self, channel: Channel, shapes: Iterator[tuple[int, ...]], device: torch.device) -> None:
        """shapes: [1, C, f, h, w] of each block."""
        super().__init__(self._received(channel, shapes, device))
        self._took = 0.0

    @property
    def denoise_seconds(self) -> float:
        return self._took

    def _received(
        self, channel: Channel, shapes: Iterator[tuple[int, ...]], device: torch.device
    ) -> Iterator[Tensor]:
        for size in shapes:
            message = channel.receive([prod(size) + 2], torch.float32, device)
            what, self._took = message[-2:].tolist()
            if what == FAILED:
                raise FailedElsewhere
            if what == ENDED:
                return
            yield message[:-2].view(size)


def send_blocks(
    blocks: Iterator[Tensor], channel: Channel, shapes: Iterator[tuple[int, ...]], device: torch.device
) -> None:
    """Send each block as it is done. Raises what `blocks` raise: FloatingPointError, Unwanted, once told.

    shapes: [1, C, f, h, w] of all blocks that are to come.
    """
    began = time.monotonic()

    def send(block: Tensor, what: int) -> None:
        about = block.new_tensor([what, time.monotonic() - began])
        channel.send(torch.cat([block.flatten(), about]))

    def send_nothing(what: int) -> None:
        """Where a block is still waited for: in its place."""
        if (shape := next(shapes, None)) is not None:
            send(torch.zeros(shape, device=device), what)

    try:
        for block in blocks:
            send(block, BLOCK)
            next(shapes)
    except (FloatingPointError, Unwanted):
        send_nothing(FAILED)
        raise
    send_nothing(ENDED)
