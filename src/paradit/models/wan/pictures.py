"""Encoding of a request's pictures, as WanImageToVideoPipeline and WanVideoToVideoPipeline encode them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image
from torch import Tensor

from paradit.config.encoded_pictures import encoded_latent_frames
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.protocol import Frames, Pixels
from paradit.models.spec import ModelSpec
from paradit.models.wan.encoder import Pieces, WanEncoder
from paradit.models.wan.spec import joins_channels


def encode_pictures(
    pipeline: DiffusionPipeline,
    spec: ModelSpec,
    request: ResolvedRequest,
    pixels: Pixels,
    told: Callable[[int], None],
) -> tuple[Tensor, ...]:
    """Return a request's encoded pictures, fp32, with the shapes of `condition_shapes`.

    pipeline: the loaded Wan pipeline. pixels: the pictures, of the size of the request. A last picture that
    becomes a latent frame of its own is encoded as a video that stands still. told: function that is told how
    many latent frames are encoded so far.
    """
    encoder = WanEncoder(pipeline.vae, request.vae_tile, told)
    ratio = spec.vae.temporal_compression

    def encoded(frames: Pieces) -> Tensor:
        return encoder.encode(frames, request.height, request.width)

    def read(picture: Frames) -> Tensor:
        return preprocessed(pipeline, [picture], request)

    if pixels.video is not None:
        parts = partial(_video, pipeline, request, pixels.video, latent_shape(request, spec)[1], ratio)
        return (encoded(parts),)
    given = [picture for picture in (pixels.image, pixels.last_image) if picture is not None]
    if not given:
        return ()
    if joins_channels(spec):
        assert pixels.image is not None, "a request to this model has an image"
        last = None if pixels.last_image is None else read(pixels.last_image)
        number = encoded_latent_frames(request, spec)
        latents = encoded(partial(_grey_between, read(pixels.image), last, number, ratio))
        return latents, *([_embedded(pipeline, given)] if spec.transformers[0].images else [])
    clean = []
    if pixels.image is not None:
        first = read(pixels.image)
        clean.append(encoded(lambda: [first]))
    if pixels.last_image is not None:
        # A latent frame at the end of a video covers several frames.
        still = read(pixels.last_image)
        clean.append(encoded(lambda: [still, still.expand(-1, -1, ratio, -1, -1)])[:, :, 1:])
    return tuple(clean)


def preprocessed(pipeline: Any, frames: Sequence[Frames], request: ResolvedRequest) -> Tensor:
    """Convert frames [H, W, 3] to pixels [1, 3, f, H, W] from -1 to 1, in fp32, as the pipeline does."""
    pictures = [Image.fromarray(frame) for frame in frames]
    pixels: Tensor = pipeline.video_processor.preprocess(pictures, height=request.height, width=request.width)
    return pixels.to(torch.float32).transpose(0, 1).unsqueeze(0)


def _video(
    pipeline: Any, request: ResolvedRequest, frames: Frames, number: int, ratio: int
) -> Iterator[Tensor]:
    """Yield the pixels of a video, in a piece for each of `number` latent frames.

    If the video is too short for the last one, its last frame is repeated.
    """
    for start, stop in pairwise([0, *range(1, number * ratio + 1, ratio)]):
        places = [min(place, len(frames) - 1) for place in range(start, stop)]
        yield preprocessed(pipeline, [frames[place] for place in places], request)


def _grey_between(first: Tensor, last: Tensor | None, number: int, ratio: int) -> Iterator[Tensor]:
    """Yield the pixels of `number` latent frames: the first picture, then grey, then the last picture."""
    yield first
    grey = torch.zeros_like(first).repeat(1, 1, ratio, 1, 1)
    for index in range(1, number):
        if last is not None and index == number - 1:
            yield torch.cat([grey[:, :, 1:], last], dim=2)
        else:
            yield grey


def _embedded(pipeline: Any, pictures: Sequence[Frames]) -> Tensor:
    """Return the embeddings [1 or 2, T, C] of pictures that cross-attention reads, as `encode_image` does."""
    found: Tensor = pipeline.encode_image(
        [Image.fromarray(picture) for picture in pictures], pipeline.image_encoder.device
    )
    return found.float()
