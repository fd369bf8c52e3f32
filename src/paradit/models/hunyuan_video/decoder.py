"""AutoencoderKLHunyuanVideo's decoder, run on one group of latent frames at a time.

Its norms take statistics of all frames that it is given, so it cannot run frame by frame. diffusers cuts a
long video into groups of five latent frames, which overlap: each group starts three frames after the one
before. It decodes each group by itself and blends the overlaps, but keeps all groups in memory until the last
is ready.

Here a group is decoded once its latents have arrived, and its frames are returned once they are blended, so
that memory does not grow with the video's length. The values are those of the VAE's `decode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from paradit.config.tiles import Tile
from paradit.models.common.blending import as_frames
from paradit.models.common.latent_blocks import LatentBlocks, in_blocks
from paradit.models.protocol import Frames


class HunyuanVideoDecoder:
    """Decoder of a video's latents, one group of latent frames at a time; neighbouring groups overlap.

    It implements `Decoder`: the pieces of that interface are the decoder's output for each of these groups.
    """

    def __init__(
        self, vae: AutoencoderKLHunyuanVideo, processor: VideoProcessor, latents: Tensor | LatentBlocks
    ) -> None:
        """Prepare to decode scaled latents [1, C, F, h, w]."""
        self._vae, self._video_processor = vae, processor
        self._groups = _Groups(vae, in_blocks(latents))
        self.scale: int = vae.spatial_compression_ratio
        self.num_pieces = self._groups.count

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Return the shape [1, C, f, H, W] of the decoder's output for one group of latent frames of a tile.

        The group's first latent frame becomes one frame, each other latent frame four.
        """
        frames = (self._groups.length(index) - 1) * self._vae.temporal_compression_ratio + 1
        height, width = tile.rows.size * self.scale, tile.columns.size * self.scale
        return 1, self._vae.config["out_channels"], frames, height, width

    @torch.no_grad()
    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """Yield the decoder's output [1, 3, f, H, W] for a tile, one group of latent frames at a time.

        Groups are not yet blended in time.
        """
        rows, columns = (slice(span.start, span.stop) for span in (tile.rows, tile.columns))
        for index in range(self.num_pieces):
            z = self._groups.at(index)
            if z is None:
                return
            yield self._vae.decoder(self._vae.post_quant_conv(z[..., rows, columns]))

    @torch.no_grad()
    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Yield the frames [f, H, W, 3] of each latent frame.

        pictures: the decoder's output for each group of latent frames, with tiles joined.
        """
        ratio = self._vae.temporal_compression_ratio
        for group in self._blended(pictures):
            # The video's first latent frame is one frame, each other one four.
            count, ones = divmod(group.shape[2], ratio)
            for part in torch.split(group, [1] * ones + [ratio] * count, dim=2):
                yield as_frames(self._video_processor, part)

    def _blended(self, pictures: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the decoder's output for the new frames of each group, blended with the group before.

        pictures: the decoder's output for each group of latent frames, with tiles joined. Neighbouring groups
        overlap.
        """
        vae, previous = self._vae, None
        stride = vae.tile_sample_stride_num_frames
        overlap = vae.tile_sample_min_num_frames - stride
        # The lengths are those of the VAE's `_temporal_tiled_decode`. The first frame of a later group is
        # dropped: the group before has it, too.
        for picture in pictures:
            if self.num_pieces == 1:
                yield picture
            elif previous is None:
                previous = picture
                yield previous[:, :, : stride + 1]
            else:
                previous = vae.blend_t(previous, picture[:, :, 1:], overlap)
                yield previous[:, :, :stride]


class _Groups:
    """Groups of latent frames that are decoded together; neighbouring groups overlap.

    A group is complete once its latents have arrived.
    """

    def __init__(self, vae: AutoencoderKLHunyuanVideo, latents: LatentBlocks) -> None:
        self._vae, self._latents, self._num_frames = vae, latents, latents.shape[2]
        ratio = vae.temporal_compression_ratio
        size: int = vae.tile_sample_min_num_frames // ratio
        self._stride: int = vae.tile_sample_stride_num_frames // ratio
        in_groups = vae.use_framewise_decoding and self._num_frames > size
        self._longest = size + 1 if in_groups else self._num_frames
        # A group starts with a frame of the group before; a group of only that frame would add nothing.
        self.count = len(range(0, self._num_frames - 1, self._stride)) if in_groups else 1
        self._index, self._ended = -1, False
        self._frames: list[Tensor] = []
        """Latent frames of the group that was requested last, some of which belong to the next group too."""

    def length(self, index: int) -> int:
        """Return the number of latent frames in a group, unless the video ends early.

        index: the group's index.
        """
        return min(self._longest, self._num_frames - index * self._stride)

    def at(self, index: int) -> Tensor | None:
        """Return a group of latent frames as a tensor [1, C, f, h, w]; None if the video has ended before it.

        index: the group's index. Groups must be requested in order, but the latest one may be requested
        again.
        """
        if index == self._index + 1:
            self._index = index
            self._frames = self._frames[self._stride if index else 0 :]
            while not self._ended and len(self._frames) < self.length(index):
                frame = self._latents.frame(index * self._stride + len(self._frames))
                if frame is None:
                    self._ended = True
                    break
                z = frame.to(self._vae.device, self._vae.dtype)
                self._frames.append(z / self._vae.config["scaling_factor"])
        assert index == self._index, f"group {index} was requested after group {self._index}"
        # If only the frame that it shares with the group before is left, a group adds nothing.
        return torch.cat(self._frames, dim=2) if len(self._frames) > (index > 0) else None
