"""Effects of a request's pictures on a Wan model's denoising, one class for each way to take pictures.

The results equal those of WanImageToVideoPipeline and WanVideoToVideoPipeline.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paradit.config.encoded_pictures import encoded_latent_frames
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.common.given_frames import given_mask
from paradit.models.common.no_conditions import Model, NoConditions
from paradit.models.protocol import Prompt, Scheduler
from paradit.models.spec import ModelSpec
from paradit.models.wan.spec import joins_channels


class JoinedChannels(NoConditions):
    """Pictures that the transformer reads as further channels of its input (Wan 2.1 I2V, FLF2V, A14B).

    The channels hold a mask of the given frames, and the encoding of a video that is grey except for them.
    Cross-attention may read the pictures, too.
    """

    def __init__(
        self,
        model: Model,
        latents: Tensor,
        embeds: Tensor | None = None,
        *,
        num_frames: int,
        ratio: int,
        has_last: bool,
    ) -> None:
        """Keep the encoded video and the pictures' embeddings [1 or 2, T, C], for cross-attention.

        latents: the encoded video [1, C, F, h, w]. If F is less than `num_frames`, the number of the video's
        latent frames, the others equal the last one that no picture affects. ratio: number of frames that a
        latent frame covers. has_last: whether the last frame is given.
        """
        super().__init__(model)
        self._latents, self._embeds, self._ratio = latents, embeds, ratio
        self._last = num_frames - 1 if has_last else None

    def prompts(self, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        """Return the encoded prompts, with the pictures' embeddings if cross-attention reads them."""
        if self._embeds is None:
            return prompts
        return tuple((*prompt, self._embeds.to(self._model.dtype)) for prompt in prompts)

    def model_input(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return latents with mask and encoded video as further channels, in the transformer's dtype."""
        mask = given_mask(latents, frames, self._ratio, self._last)
        joined = torch.cat([latents, mask, self._given(frames)], dim=1)
        return super().model_input(joined, frames)

    def _given(self, frames: Sequence[int]) -> Tensor:
        number = self._latents.shape[2]
        settled = number - 1 if self._last is None else number - 2
        places = [number - 1 if frame == self._last else min(frame, settled) for frame in frames]
        return self._latents[:, :, places]


class CleanFrames(NoConditions):
    """Pictures as latent frames without noise, whose tokens have timestep 0 (Wan 2.2 TI2V)."""

    def __init__(self, model: Model, given: dict[int, Tensor]) -> None:
        """Keep the given latent frames: a mapping from their index in the video to [1, C, 1, h, w]."""
        super().__init__(model)
        self._latents = given

    def model_input(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return latents with the given latent frames put in, in the transformer's dtype."""
        return super().model_input(self.end(latents, frames), frames)

    def model_timestep(self, timestep: Tensor, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return the timestep of each frame of tokens: 0 for given frames."""
        by_frame = timestep.float().expand(len(frames)).clone()
        for place, frame in enumerate(frames):
            if frame in self._latents:
                by_frame[place] = 0
        return super().model_timestep(by_frame, latents, frames)

    def end(self, latents: Tensor, frames: Sequence[int]) -> Tensor:
        """Return latents with the given latent frames put in."""
        latents = latents.clone()
        for place, frame in enumerate(frames):
            if frame in self._latents:
                latents[:, :, place : place + 1] = self._latents[frame]
        return latents


class NoisyVideo(NoConditions):
    """Video that denoising begins with, after noise was added to it (WanVideoToVideoPipeline)."""

    def __init__(self, model: Model, latents: Tensor) -> None:
        """Keep the video's latents [1, C, F, h, w]."""
        super().__init__(model)
        self._latents = latents

    def begin(self, noise: Tensor, scheduler: Scheduler) -> Tensor:
        """Return the video with as much noise as belongs to the scheduler's first step."""
        first = scheduler.timesteps[scheduler.begin_index :][:1]
        if hasattr(scheduler, "add_noise"):
            return scheduler.add_noise(self._latents, noise, first)
        return scheduler.scale_noise(self._latents, first, noise)


def condition_shapes(spec: ModelSpec, request: ResolvedRequest) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a request's encoded pictures; () if it has none."""
    channels, frames, height, width = latent_shape(request, spec)
    if request.video is not None:
        return ((1, channels, frames, height, width),)
    given = sum(picture is not None for picture in (request.image, request.last_image))
    if not given or not joins_channels(spec):
        return ((1, channels, 1, height, width),) * given
    reads = spec.transformers[0]
    latents = (1, channels, encoded_latent_frames(request, spec), height, width)
    embeds = [(reads.images, reads.image_tokens // reads.images, reads.image_dim)] if reads.images else []
    return latents, *embeds


def conditions_of(model: Model, request: ResolvedRequest, encoded: Sequence[Tensor]) -> NoConditions:
    """Return the effect of a request's encoded pictures on its denoising."""
    spec, frames = model.spec, latent_shape(request, model.spec)[1]
    if request.video is not None:
        return NoisyVideo(model, *encoded)
    if not encoded:
        return NoConditions(model)
    if joins_channels(spec):
        return JoinedChannels(
            model,
            *encoded,
            num_frames=frames,
            ratio=spec.vae.temporal_compression,
            has_last=request.last_image is not None,
        )
    places = [0] if request.image is not None else []
    places += [frames - 1] if request.last_image is not None else []
    return CleanFrames(model, dict(zip(places, encoded, strict=True)))
