"""AutoencoderKLWan's decoder, one latent frame at a time.

Its convolutions are causal in time, and diffusers too runs it frame by frame with a feature cache; but it
keeps every decoded frame until the last one is there. Here each leaves at once, so that memory does not grow
with length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from paradit.models.protocol import Frames


@torch.no_grad()
def decode(vae: Any, video_processor: Any, blocks: Iterable[Tensor]) -> Iterator[Frames]:
    """Frames [f, H, W, 3] for each latent frame of normalised latents [1, C, F, h, w].

    blocks: one video's latents, all at once or as they come. vae: AutoencoderKLWan. video_processor:
    diffusers' VideoProcessor. Equal to the VAE's `decode`.
    """
    convolutions = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
    cache: list[Tensor | str | None] = [None] * convolutions
    frames_of_latents = (frame for block in blocks for frame in torch.split(_quantised(vae, block), 1, dim=2))
    for index, z in enumerate(frames_of_latents):
        # The decoder counts its convolutions in feat_idx, from zero on each call.
        sample = vae.decoder(z, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
        if vae.config.patch_size is not None:
            sample = unpatchify(sample, patch_size=vae.config.patch_size)  # type: ignore[no-untyped-call]
        frames = video_processor.postprocess_video(sample.clamp(-1, 1), output_type="np")[0]
        yield (frames * 255).round().astype("uint8")


def _quantised(vae: Any, latents: Tensor) -> Tensor:
    z: Tensor = vae.post_quant_conv(_denormalise(vae, latents.to(vae.device, vae.dtype)))
    return z


def _denormalise(vae: Any, latents: Tensor) -> Tensor:
    # Divided by the inverse, not multiplied: that is how WanPipeline rounds.
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents / (1.0 / std) + mean
