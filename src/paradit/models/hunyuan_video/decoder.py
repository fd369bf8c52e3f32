"""AutoencoderKLHunyuanVideo's decoder, one group of latent frames at a time.

Its norms look at all frames that it is given, so it cannot go frame by frame. diffusers cuts a long video
into overlapping groups of latent frames (five, three apart), decodes each by itself and blends where they
overlap, but keeps them all until the last is there. Here a group's frames leave when they are blended, so
that memory does not grow with length; the values are those of the VAE's `decode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from paradit.models.latent_blocks import LatentBlocks, in_blocks
from paradit.models.protocol import Frames
from paradit.tiles import Tile


class HunyuanVideoDecoder:
    """Decodes a video's latents, a piece being the samples of a group of latent frames."""

    def __init__(self, vae: Any, video_processor: Any, latents: Tensor | LatentBlocks) -> None:
        """Of scaled latents [1, C, F, h, w]; blocks are waited for, all of them.

        vae: AutoencoderKLHunyuanVideo. video_processor: diffusers'.
        """
        latents = in_blocks(latents).whole()
        self._vae, self._video_processor = vae, video_processor
        self._z = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        self._groups = _groups(vae, self._z.shape[2])
        self.scale: int = vae.spatial_compression_ratio
        self.num_pieces = len(self._groups)

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Of a tile's piece: each latent frame is four frames, but a group's first is one."""
        group = self._groups[index]
        frames = (group.stop - group.start - 1) * self._vae.temporal_compression_ratio + 1
        height, width = tile.rows.size * self.scale, tile.columns.size * self.scale
        return 1, self._vae.config.out_channels, frames, height, width

    @torch.no_grad()
    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """The tile's samples [1, 3, f, H, W], for one group after the other; not blended in time."""
        z = self._z[..., tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop]
        for group in self._groups:
            yield self._vae.decoder(self._vae.post_quant_conv(z[:, :, group]))

    @torch.no_grad()
    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Frames [f, H, W, 3] for each latent frame, of the groups' whole pictures."""
        ratio = self._vae.temporal_compression_ratio
        for group in self._blended(pictures):
            # Each latent frame is four frames, but the video's first is one.
            count, ones = divmod(group.shape[2], ratio)
            for part in torch.split(group, [1] * ones + [ratio] * count, dim=2):
                frames = self._video_processor.postprocess_video(part, output_type="np")[0]
                yield (frames * 255).round().astype("uint8")

    def _blended(self, pictures: Iterable[Tensor]) -> Iterator[Tensor]:
        """What each group adds to the video, blended with the end of the one before."""
        vae, previous = self._vae, None
        stride = vae.tile_sample_stride_num_frames
        overlap = vae.tile_sample_min_num_frames - stride
        for picture in pictures:
            if self.num_pieces == 1:
                yield picture
            elif previous is None:
                previous = picture
                yield previous[:, :, : stride + 1]
            else:
                previous = vae.blend_t(previous, picture[:, :, 1:], overlap)
                yield previous[:, :, :stride]


def _groups(vae: Any, num_frames: int) -> list[slice]:
    """The groups of latent frames that are decoded together."""
    ratio = vae.temporal_compression_ratio
    size, stride = vae.tile_sample_min_num_frames // ratio, vae.tile_sample_stride_num_frames // ratio
    if not vae.use_framewise_decoding or num_frames <= size:
        return [slice(0, num_frames)]
    # A group starts with a frame of the one before. One that had no other would bring nothing new.
    return [slice(start, min(start + size + 1, num_frames)) for start in range(0, num_frames - 1, stride)]
