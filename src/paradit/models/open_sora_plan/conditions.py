"""Encoding of a request's pictures for Open-Sora-Plan, and their effect on its denoising."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from paradit.models.common.given_frames import given_mask
from paradit.models.common.no_conditions import Model, NoConditions
from paradit.models.protocol import Frames


class FromNoise(NoConditions):
    """Conditions of a request from text alone: denoising begins with noise that the scheduler scales."""

    def begin(self, noise: Tensor, scheduler: Any) -> Tensor:
        """Return the noise, multiplied by the scheduler's `init_noise_sigma`."""
        scaled: Tensor = noise * scheduler.init_noise_sigma
        return scaled


class GivenFrames(FromNoise):
    """Pictures that the transformer reads as further channels of its input.

    The channels hold the encoding of a video that is black except for the pictures, and a mask that is 0 for
    given frames.
    """

    def __init__(self, model: Model, latents: Tensor, *, ratio: int, has_last: bool) -> None:
        """Keep the encoded video [1, C, F, h, w].

        ratio: number of frames that a latent frame covers. has_last: whether the last frame is given.
        """
        super().__init__(model)
        self._latents, self._ratio = latents, ratio
        self._last = latents.shape[2] - 1 if has_last else None

    def model_input(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return latents with encoded video and mask as further channels, in the transformer's dtype."""
        mask = 1 - given_mask(latents, frames, self._ratio, self._last)
        joined = torch.cat([latents, self._latents[:, :, list(frames)], mask], dim=1)
        return super().model_input(joined, frames)


def black_between(first: Frames, last: Frames | None, number: int, ratio: int) -> Iterator[Tensor]:
    """Yield the pixels of `number` latent frames: the first picture, then black, then the last picture.

    first, last: the pictures, [H, W, 3]. ratio: number of frames that a latent frame covers. Pixels are
    [1, 3, f, H, W], from -1 to 1.
    """
    yield _pixels(first)
    for index in range(1, number):
        black = -torch.ones_like(_pixels(first)).repeat(1, 1, ratio, 1, 1)
        if last is not None and index == number - 1:
            black[:, :, -1:] = _pixels(last)
        yield black


def _pixels(picture: Frames) -> Tensor:
    """Return the pixels [1, 3, 1, H, W] of a picture [H, W, 3], from -1 to 1."""
    return 2 * (torch.tensor(picture).permute(2, 0, 1)[None, :, None].float() / 255) - 1
