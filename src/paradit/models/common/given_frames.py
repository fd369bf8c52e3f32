"""Mask of the frames that a request's pictures give, for transformers that read it as further channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def given_mask(latents: Tensor, frames: Sequence[int], ratio: int, last: int | None) -> Tensor:
    """Return a mask [1, ratio, f, h, w] like latents [B, C, f, h, w]: 1 for the frames that are given.

    It has a channel for each frame that a latent frame covers. The first frame of the video is given. frames:
    indices, in the whole video, of the latent frames that `latents` has. ratio: number of frames that a
    latent frame covers. last: index of the video's last latent frame if its last frame is given, else None.
    """
    mask = latents.new_zeros(1, ratio, *latents.shape[2:])
    for place, frame in enumerate(frames):
        if frame == 0:
            mask[:, :, place] = 1
        elif frame == last:
            mask[:, -1, place] = 1
    return mask
