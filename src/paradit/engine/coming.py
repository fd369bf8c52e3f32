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
from paradit.scheduling.block_queue import BlockQueue

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

    def __init__(
        self, channel: Channel, queue: BlockQueue, shape: tuple[int, ...], device: torch.device
    ) -> None:
        """shape: [1, C, F, h, w], of the video."""
        super().__init__(self._received(channel, queue, shape, device))
        self._took = 0.0

    @property
    def denoise_seconds(self) -> float:
        return self._took

    def _received(
        self, channel: Channel, queue: BlockQueue, shape: tuple[int, ...], device: torch.device
    ) -> Iterator[Tensor]:
        assert queue.num_blocks
        for number in range(queue.num_blocks):
            size = *shape[:2], queue.frames_of(number), *shape[3:]
            message = channel.receive([prod(size) + 2], torch.float32, device)
            what, self._took = message[-2:].tolist()
            if what == FAILED:
                raise FailedElsewhere
            if what == ENDED:
                return
            yield message[:-2].view(size)


def send_blocks(
    blocks: Iterator[Tensor],
    channel: Channel,
    queue: BlockQueue,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Send each block as it is done. Raises what `blocks` raise: FloatingPointError, Unwanted, once told."""
    began, sent = time.monotonic(), 0

    def send(block: Tensor, what: int) -> None:
        about = block.new_tensor([what, time.monotonic() - began])
        channel.send(torch.cat([block.flatten(), about]))

    def nothing() -> Tensor:
        return torch.zeros(*shape[:2], queue.frames_of(sent), *shape[3:], device=device)

    try:
        for block in blocks:
            send(block, BLOCK)
            sent += 1
    except (FloatingPointError, Unwanted):
        if sent != queue.num_blocks:
            send(nothing(), FAILED)
        raise
    if sent != queue.num_blocks:
        send(nothing(), ENDED)
