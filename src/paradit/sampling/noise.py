"""Noise from which a video starts, or from which each frame block of a long video starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from paradit.models.common.seeded import seeded


def initial_noise(shape: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """Return a video's initial noise, fp32, as diffusers' pipelines draw it.

    It is drawn on the CPU, so that a seed gives the same noise on every device.
    """
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed)).to(device)


def step_generator(seed: int, step: int, part: int | None = None) -> torch.Generator:
    """Return the CPU random generator for the noise that a scheduler adds in one denoising step.

    step: the step's index, counted from 0. part: index of the frame block, or of the latent frame, to which
    this step applies; None: it applies to the whole video. Each step has its own generator, so no generator
    state needs to be saved or shared between ranks.
    """
    return seeded("step" if part is None else f"step of part {part}", seed, step)


class BlockNoise(Protocol):
    """Interface of a source of noise for frame blocks; the noise depends only on the seed and the block."""

    def block(self, number: int) -> Tensor:
        """Return a frame block's initial noise, [1, C, block_frames, h, w], fp32, on the CPU."""

    def step(self, part: int, step: int) -> torch.Generator:
        """Return the random generator for the noise that a scheduler adds in one denoising step.

        step: the step's index, counted from 0. part: index of the frame block, or of the latent frame, to
        which this step applies.
        """


class IndependentNoise:
    """Source of noise that is drawn for each frame block independently."""

    def __init__(self, frame_shape: tuple[int, int, int], seed: int, block_frames: int) -> None:
        """Set up noise for frame blocks of `block_frames` frames.

        frame_shape: shape (C, h, w) of one latent frame.
        """
        self._shape, self._seed, self._frames = frame_shape, seed, block_frames

    def block(self, number: int) -> Tensor:
        channels, height, width = self._shape
        shape = 1, channels, self._frames, height, width
        return torch.randn(shape, generator=seeded("noise", self._seed, number))

    def step(self, part: int, step: int) -> torch.Generator:
        return step_generator(self._seed, step, part)


class PooledNoise:
    """DualParal's coordinated noise (arXiv 2505.21070): frame blocks take their noise from a common pool.

    The pool has as many frames as a frame block and its left context together. A block takes, in random
    order, the frames that its left context does not use. So a block and its left context together contain
    each frame of the pool once.
    """

    def __init__(
        self, frame_shape: tuple[int, int, int], seed: int, block_frames: int, context_frames: int
    ) -> None:
        """Draw the pool of noise frames.

        frame_shape: shape (C, h, w) of one latent frame. block_frames: number of latent frames in a frame
        block. context_frames: number of latent frames in its left context, at most `block_frames`.
        """
        channels, height, width = frame_shape
        shape = 1, channels, block_frames + context_frames, height, width
        self._pool = initial_noise(shape, seed, torch.device("cpu"))
        self._seed, self._frames = seed, block_frames
        self._next, self._order = 0, list(range(block_frames + context_frames))

    def block(self, number: int) -> Tensor:
        return self._pool[:, :, self.frames_of(number)]

    def step(self, part: int, step: int) -> torch.Generator:
        return step_generator(self._seed, step, part)

    def frames_of(self, number: int) -> list[int]:
        """Return the indices of the noise frames that a frame block takes from the pool, in order.

        A block's indices follow from those of the block before, so those of all earlier blocks are computed
        first.
        """
        # An earlier block than the latest one: begin again with the first block.
        if number + 1 < self._next:
            self._next, self._order = 0, list(range(len(self._order)))
        while self._next <= number:
            free, taken = self._order[: self._frames], self._order[self._frames :]
            shuffle = torch.randperm(self._frames, generator=seeded("order", self._seed, self._next))
            self._order = [*taken, *(free[index] for index in shuffle)]
            self._next += 1
        return self._order[-self._frames :]
