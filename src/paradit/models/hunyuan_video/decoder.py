"""AutoencoderKLHunyuanVideo's decoder, one group of latent frames at a time.

Its norms look at all frames that it is given, so it cannot go frame by frame. diffusers cuts a long video
into overlapping groups of latent frames (five, three apart), decodes each by itself and blends where they
overlap, but keeps them all until the last is there. Here a group's frames leave when they are blended, so
that memory does not grow with length; the values are those of the VAE's `decode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from paradit.models.protocol import Frames


@torch.no_grad()
def decode(vae: Any, video_processor: Any, latents: Tensor) -> Iterator[Frames]:
    """Frames [f, H, W, 3] for each latent frame of scaled latents [1, C, F, h, w].

    vae: AutoencoderKLHunyuanVideo. video_processor: diffusers' VideoProcessor.
    """
    z = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    for group in _groups(vae, z):
        # Each latent frame is four frames, but the video's first is one.
        count, ones = divmod(group.shape[2], vae.temporal_compression_ratio)
        sizes = [1] * ones + [vae.temporal_compression_ratio] * count
        for part in torch.split(group, sizes, dim=2):
            frames = video_processor.postprocess_video(part, output_type="np")[0]
            yield (frames * 255).round().astype("uint8")


def _groups(vae: Any, z: Tensor) -> Iterator[Tensor]:
    """Decoded and blended groups [1, 3, f, H, W] of latents [1, C, F, h, w]: those of `vae.decode`."""
    ratio, num_frames = vae.temporal_compression_ratio, z.shape[2]
    size, stride = vae.tile_sample_min_num_frames // ratio, vae.tile_sample_stride_num_frames // ratio
    overlap = vae.tile_sample_min_num_frames - vae.tile_sample_stride_num_frames
    if not vae.use_framewise_decoding or num_frames <= size:
        yield vae.decode(z).sample
        return
    previous = None
    # A group starts with a frame of the one before. One that had no other would bring nothing new.
    for start in range(0, num_frames - 1, stride):
        group = _decode(vae, z[:, :, start : start + size + 1])
        if previous is None:
            yield group[:, :, : stride * ratio + 1]
        else:
            group = vae.blend_t(previous, group[:, :, 1:], overlap)
            yield group[:, :, : stride * ratio]
        previous = group


def _decode(vae: Any, z: Tensor) -> Tensor:
    """All frames of a group at once; `vae.decode` itself would cut it again."""
    least_height = vae.tile_sample_min_height // vae.spatial_compression_ratio
    least_width = vae.tile_sample_min_width // vae.spatial_compression_ratio
    if vae.use_tiling and (z.shape[3] > least_height or z.shape[4] > least_width):
        tiled: Tensor = vae.tiled_decode(z).sample
        return tiled
    decoded: Tensor = vae.decoder(vae.post_quant_conv(z))
    return decoded
