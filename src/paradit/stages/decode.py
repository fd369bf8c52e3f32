"""The last stage: latents become frames, as they are asked for."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from paradit.models.protocol import Frames, VideoModel
from paradit.progress import Progress


def decode(model: VideoModel, latents: Tensor, progress: Progress) -> Generator[Frames, None, None]:
    """Each frame [H, W, 3] of latents [1, C, F, h, w], when its turn comes; told as stage "decode"."""
    with progress.stage("decode", total=latents.shape[2]):
        for latent_frame, frames in enumerate(model.decode(latents)):
            progress.step("decode", latent_frame + 1)
            yield from frames
