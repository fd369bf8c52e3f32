"""Latents on their way from the rank that denoises first to those that decode: whole, or block by block."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.distributed.channel import Channel
from paradit.distributed.world import World
from paradit.models.spec import ModelSpec
from paradit.sampling.early_end import Unwanted
from paradit.scheduling.stages import AHEAD

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
    """Blocks that another rank sends by `Latents.send_blocks`; FailedElsewhere where it fails."""

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


class Latents:
    """One rank's ends of the ways from the rank that denoises first to each of the decoders."""

    def __init__(
        self, spec: ModelSpec, placement: Placement, world: World | None, device: torch.device
    ) -> None:
        leader = placement.denoise_ranks[0]
        self._spec, self._device = spec, device
        self._channels = [Channel(world, leader, group, AHEAD) for group in placement.decode_groups]

    def shape(self, request: ResolvedRequest) -> tuple[int, ...]:
        """Return the shape of all latents of a request, [1, C, F, h, w]."""
        return 1, *latent_shape(request, self._spec)

    def send(self, decoder: int, request: ResolvedRequest, latents: Tensor | None, seconds: float) -> None:
        """Send a request's latents, and the seconds that they took; None: it has ended early."""
        if latents is None:
            latents = torch.full(self.shape(request), torch.nan, device=self._device)
        self._channels[decoder].send(torch.cat([latents.flatten(), latents.new_tensor([seconds])]))

    def receive(self, decoder: int, request: ResolvedRequest) -> tuple[Tensor, float]:
        """Return a request's latents, not finite if it has ended early, and the seconds that they took."""
        shape = self.shape(request)
        message = self._channels[decoder].receive([prod(shape) + 1], torch.float32, self._device)
        return message[:-1].view(shape), message[-1].item()

    def send_blocks(self, decoder: int, request: ResolvedRequest, blocks: Iterator[Tensor]) -> None:
        """Send each block as it is done. FloatingPointError and Unwanted are passed on, once told."""
        began, shapes = time.monotonic(), self._block_shapes(request)

        def send(block: Tensor, what: int) -> None:
            about = block.new_tensor([what, time.monotonic() - began])
            self._channels[decoder].send(torch.cat([block.flatten(), about]))

        def send_nothing(what: int) -> None:
            """Where a block is still waited for: in its place."""
            if (shape := next(shapes, None)) is not None:
                send(torch.zeros(shape, device=self._device), what)

        try:
            for block in blocks:
                send(block, BLOCK)
                next(shapes)
        except (FloatingPointError, Unwanted):
            send_nothing(FAILED)
            raise
        send_nothing(ENDED)

    def receive_blocks(self, decoder: int, request: ResolvedRequest) -> ComingFrom:
        """Return a request's blocks, as they come."""
        return ComingFrom(self._channels[decoder], self._block_shapes(request), self._device)

    def close(self) -> None:
        """Wait until all that was sent has been taken."""
        for channel in self._channels:
            channel.close()

    def _block_shapes(self, request: ResolvedRequest) -> Iterator[tuple[int, ...]]:
        channels, _, *size = latent_shape(request, self._spec)
        return ((1, channels, frames, *size) for frames in request.block_sizes(self._spec))
