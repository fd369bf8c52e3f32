"""WFVAEModel's encoder, run a few frames at a time, so that memory does not grow with a video's length."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.open_sora_plan.wf_vae_layers import Past
from paradit.models.protocol import untold


@torch.no_grad()
def encoded(
    vae: WFVAEModel,
    pieces: Iterable[Tensor],
    generator: torch.Generator,
    told: Callable[[int], None] = untold,
) -> Tensor:
    """Return normalised latents [1, C, F, h, w] of a video, drawn from the encoder's distribution.

    pieces: the video's pixels [1, 3, f, H, W], from -1 to 1: first one frame, then a multiple of four at a
    time. generator: the source, on a CPU, of the noise. It is drawn at once, so that it does not depend on
    how the video is cut into pieces. told: function that is told how many latent frames are encoded so far.
    """
    past, made = Past(), []
    for piece in pieces:
        made.append(vae.encode(piece.to(vae.device, vae.dtype), past))
        told(sum(mean.shape[2] for mean, _ in made))
    mean, log_variance = (torch.cat(parts, dim=2) for parts in zip(*made, strict=True))
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return vae.normalised(mean + (0.5 * log_variance).exp() * noise)
