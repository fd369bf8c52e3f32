"""AutoencoderKLHunyuanVideo's decoder, one group of latent frames at a time.

Its norms look at all frames that it is given, so it cannot go frame by frame. diffusers cuts a long video
into overlapping groups of latent frames (five, three apart), decodes each by itself and blends where they
overlap, but keeps them all until the last is there. Here a group is decoded once its latents have come, and
its frames leave when they are blended, so that memory does not grow with length; the values are those of the
VAE's `decode`.
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
    """Decodes a video's latents, a piece being the samples of a group of latent frames."""

    def __init__(
        self, vae: AutoencoderKLHunyuanVideo, processor: VideoProcessor, latents: Tensor | LatentBlocks
    ) -> None:
        """Of scaled latents [1, C, F, h, w]."""
        self._vae, self._video_processor = vae, processor
        self._groups = _Groups(vae, in_blocks(latents))
        self.scale: int = vae.spatial_compression_ratio
        self.num_pieces = self._groups.count

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Of a tile's piece: each latent frame is four frames, but a group's first is one."""
        frames = (self._groups.length(index) - 1) * self._vae.temporal_compression_ratio + 1
        height, width = tile.rows.size * self.scale, tile.columns.size * self.scale
        return 1, self._vae.config["out_channels"], frames, height, width

    @torch.no_grad()
    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """The tile's samples [1, 3, f, H, W], for one group after the other; not blended in time."""
        rows, columns = (slice(span.start, span.stop) for span in (tile.rows, tile.columns))
        for index in range(self.num_pieces):
            z = self._groups.at(index)
            if z is None:
                return
            yield self._vae.decoder(self._vae.post_quant_conv(z[..., rows, columns]))

    @torch.no_grad()
    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Frames [f, H, W, 3] for each latent frame, of the groups' whole pictures."""
        ratio = self._vae.temporal_compression_ratio
        for group in self._blended(pictures):
            # Each latent frame is four frames, but the video's first is one.
            count, ones = divmod(group.shape[2], ratio)
            for part in torch.split(group, [1] * ones + [ratio] * count, dim=2):
                yield as_frames(self._video_processor, part)

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


class _Groups:
    """The groups of latent frames that are decoded together, as the frames come."""

    def __init__(self, vae: AutoencoderKLHunyuanVideo, latents: LatentBlocks) -> None:
        self._vae, self._latents, self._num_frames = vae, latents, latents.shape[2]
        ratio = vae.temporal_compression_ratio
        size: int = vae.tile_sample_min_num_frames // ratio
        self._stride: int = vae.tile_sample_stride_num_frames // ratio
        in_groups = vae.use_framewise_decoding and self._num_frames > size
        self._longest = size + 1 if in_groups else self._num_frames
        # A group starts with a frame of the one before. One that had no other would bring nothing new.
        self.count = len(range(0, self._num_frames - 1, self._stride)) if in_groups else 1
        self._index, self._ended = -1, False
        self._frames: list[Tensor] = []
        """Of the group that was asked for last; some are the next one's too."""

    def length(self, index: int) -> int:
        """How many latent frames a group has, if the video does not end before."""
        return min(self._longest, self._num_frames - index * self._stride)

    def at(self, index: int) -> Tensor | None:
        """[1, C, f, h, w]: the next group, or the one that was asked for last. None: the video has ended."""
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
        assert index == self._index, f"group {index} is asked for after {self._index}"
        return torch.cat(self._frames, dim=2) if len(self._frames) > (index > 0) else None
