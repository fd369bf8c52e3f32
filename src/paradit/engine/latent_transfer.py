"""Transfer of latents from the first rank that denoises to ranks that decode: at once, or by frame block."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.distributed.tensor_queue import Channel
from paradit.distributed.world import World
from paradit.models.spec import ModelSpec
from paradit.sampling.early_stop import Unwanted
from paradit.scheduling.stages import AHEAD

BLOCK, ENDED, FAILED = range(3)
"""Kinds of messages to a decoder: a frame block follows; the video has ended; the video has failed."""


class FailedElsewhere(Exception):
    """Exception raised if a request has failed on another rank, which reports the cause."""


class BlockStream:
    """Iterator over a long video's frame blocks [1, C, f, h, w], fp32, which times the waits for them."""

    def __init__(self, blocks: Iterator[Tensor]) -> None:
        """Create an iterator over frame blocks that this rank denoises itself, each when it is asked for."""
        self._blocks = blocks
        self.waited = 0.0
        """Seconds that the iterator has spent waiting for frame blocks so far."""

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
        """Take and drop all frame blocks that are left, so that the denoise ranks can finish the video."""
        with suppress(Unwanted, FailedElsewhere, FloatingPointError):
            for _ in self._blocks:
                pass


class ReceivedBlocks(BlockStream):
    """Iterator over frame blocks that another rank denoises and sends by `Latents.send_blocks`.

    It raises FailedElsewhere if the request fails on that rank.
    """

    def __init__(self, channel: Channel, shapes: Iterator[tuple[int, ...]], device: torch.device) -> None:
        """Receive frame blocks over a channel; `shapes` yields the shape [1, C, f, h, w] of each."""
        super().__init__(self._received(channel, shapes, device))
        self._took = 0.0

    @property
    def denoise_seconds(self) -> float:
        return self._took

    def _received(
        self, channel: Channel, shapes: Iterator[tuple[int, ...]], device: torch.device
    ) -> Iterator[Tensor]:
        for size in shapes:
            # Two numbers follow the latents: the kind of message, and the seconds that denoising has taken.
            message = channel.receive([prod(size) + 2], torch.float32, device)
            what, self._took = message[-2:].tolist()
            if what == FAILED:
                raise FailedElsewhere
            if what == ENDED:
                return
            yield message[:-2].view(size)


class Latents:
    """One rank's ends of the channels by which latents travel from the first denoise rank to each decoder."""

    def __init__(
        self, spec: ModelSpec, placement: Placement, world: World | None, device: torch.device
    ) -> None:
        leader = placement.denoise_ranks[0]
        self._spec, self._device = spec, device
        self._channels = [Channel(world, leader, group, AHEAD) for group in placement.decode_groups]

    def shape(self, request: ResolvedRequest) -> tuple[int, ...]:
        """Return the shape [1, C, F, h, w] of all latents of a request."""
        return 1, *latent_shape(request, self._spec)

    def send(self, decoder: int, request: ResolvedRequest, latents: Tensor | None, seconds: float) -> None:
        """Send a request's latents to a decoder, and the seconds that denoising took.

        latents: None if the request has ended early.
        """
        if latents is None:  # the receiver waits for a message of this size in any case
            latents = torch.full(self.shape(request), torch.nan, device=self._device)
        self._channels[decoder].send(torch.cat([latents.flatten(), latents.new_tensor([seconds])]))

    def receive(self, decoder: int, request: ResolvedRequest) -> tuple[Tensor, float]:
        """Return a request's latents, and the seconds that denoising took.

        The latents are NaN if the request has ended early.
        """
        shape = self.shape(request)
        message = self._channels[decoder].receive([prod(shape) + 1], torch.float32, self._device)
        return message[:-1].view(shape), message[-1].item()

    def send_blocks(self, decoder: int, request: ResolvedRequest, blocks: Iterator[Tensor]) -> None:
        """Send each frame block to a decoder as soon as it is denoised.

        If denoising raises FloatingPointError (latents are not finite) or Unwanted (nobody wants the rest of
        the video) or FailedElsewhere, the decoder is told that no more blocks come, and the exception is
        raised again.
        """
        began, shapes = time.monotonic(), self._block_shapes(request)

        def send(block: Tensor, what: int) -> None:
            about = block.new_tensor([what, time.monotonic() - began])
            self._channels[decoder].send(torch.cat([block.flatten(), about]))

        def send_nothing(what: int) -> None:
            """Send the decoder, in place of a frame block, a message that no more frame blocks come.

            Sends nothing after the last frame block. what: kind of the message, `ENDED` or `FAILED`.
            """
            if (shape := next(shapes, None)) is not None:
                send(torch.zeros(shape, device=self._device), what)

        try:
            for block in blocks:
                send(block, BLOCK)
                next(shapes)  # so that `send_nothing` knows the shape that the decoder expects
        except (FloatingPointError, Unwanted, FailedElsewhere):
            send_nothing(FAILED)
            raise
        send_nothing(ENDED)

    def receive_blocks(self, decoder: int, request: ResolvedRequest) -> ReceivedBlocks:
        """Return an iterator over a request's frame blocks, which yields each one when it has come."""
        return ReceivedBlocks(self._channels[decoder], self._block_shapes(request), self._device)

    def close(self) -> None:
        """Wait until all latents that were sent have been received."""
        for channel in self._channels:
            channel.close()

    def _block_shapes(self, request: ResolvedRequest) -> Iterator[tuple[int, ...]]:
        channels, _, *size = latent_shape(request, self._spec)
        return ((1, channels, frames, *size) for frames in request.block_sizes(self._spec))
