"""AutoencoderKLWan's decoder, one latent frame at a time.

Its convolutions are causal in time, and diffusers too runs it frame by frame with a feature cache; but it
keeps every decoded frame until the last one is there. Here each leaves at once, so that memory does not grow
with length: every tile of the picture has a cache of its own, and all advance together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, unpatchify
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from paradit.config.tiles import Tile
from paradit.models.common.blending import as_frames
from paradit.models.common.latent_blocks import LatentBlocks, in_blocks
from paradit.models.protocol import Frames

Cache: TypeAlias = "list[Tensor | str | None]"
"""What each causal convolution keeps of the frames before; a word says that there were none."""


class WanDecoder:
    """Decodes a video's latents, a piece being the samples of one latent frame."""

    def __init__(
        self, vae: AutoencoderKLWan, processor: VideoProcessor, latents: Tensor | LatentBlocks, *, park: bool
    ) -> None:
        """Of normalised latents [1, C, F, h, w].

        park: keep tiles' caches in the machine's memory while other tiles decode, not on the GPU.
        """
        self._vae, self._video_processor, self._park = vae, processor, park
        self._patch: int = vae.config["patch_size"] or 1
        self._latents = in_blocks(latents)
        self.scale: int = vae.config["scale_factor_spatial"] // self._patch
        self.num_pieces: int = latents.shape[2]

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Of a tile's piece: the first latent frame is one frame, each other one four."""
        frames = self._vae.config["scale_factor_temporal"] if index else 1
        height, width = tile.rows.size * self.scale, tile.columns.size * self.scale
        return 1, self._vae.config["out_channels"], frames, height, width

    @torch.no_grad()
    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """The tile's samples [1, C, f, H, W], for one latent frame after the other; in patches, unclamped."""
        rows, columns = (slice(span.start, span.stop) for span in (tile.rows, tile.columns))
        whole = (tile.rows.size, tile.columns.size) == tuple(self._latents.shape[3:])
        modules = self._vae.decoder.modules()
        cache: Cache = [None] * sum(isinstance(module, WanCausalConv3d) for module in modules)
        # On a CPU it is the same memory, but the heap stays in order: see `_parked`.
        park = not whole and (self._park or self._vae.device.type == "cpu")
        # As in diffusers: all frames at once of the whole picture, of tiles one after the other. A product of
        # so few rows may round otherwise.
        coming = self._latents.mapped(self._before_decoder) if whole else self._latents
        for index in range(self.num_pieces):
            frame = coming.frame(index)
            if frame is None:
                return
            z = frame if whole else self._before_decoder(frame[..., rows, columns])
            yield self._next(z, cache, first=index == 0, park=park)

    def _before_decoder(self, latents: Tensor) -> Tensor:
        """Normalised latents as the decoder proper takes them."""
        z: Tensor = self._vae.post_quant_conv(
            _denormalise(self._vae, latents.to(self._vae.device, self._vae.dtype))
        )
        return z

    def _next(self, z: Tensor, cache: Cache, *, first: bool, park: bool) -> Tensor:
        """The samples of a tile's next latent frame; brings its cache up to date."""
        vae = self._vae
        here = [part.to(z.device) if isinstance(part, Tensor) else part for part in cache]
        # The decoder counts its convolutions in feat_idx, from zero on each call.
        sample: Tensor = vae.decoder(z, feat_cache=here, feat_idx=[0], first_chunk=first)
        cache[:] = _parked(here, cache) if park else here
        return sample

    @torch.no_grad()
    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Frames [f, H, W, 3] of each latent frame's whole picture."""
        for picture in pictures:
            sample = unpatchify(picture, patch_size=self._patch)  # type: ignore[no-untyped-call]
            yield as_frames(self._video_processor, sample.clamp(-1, 1))


def _parked(cache: Cache, before: Cache) -> Cache:
    """The cache in the machine's memory, in the place of the one before where that has the same shape.

    Always in the same place: on a CPU, what many tiles keep would else lie between what they soon free, and
    the heap would grow to several times of both.
    """
    parked: Cache = []
    for part, old in zip(cache, before, strict=True):
        if not isinstance(part, Tensor):
            parked.append(part)
        elif isinstance(old, Tensor) and old.shape == part.shape:
            parked.append(old.copy_(part))
        else:
            parked.append(torch.empty(part.shape, dtype=part.dtype).copy_(part))
    return parked


def _denormalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    # Divided by the inverse, not multiplied: that is how WanPipeline rounds.
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
        for values in (vae.config["latents_mean"], vae.config["latents_std"])
    )
    return latents / (1.0 / std) + mean
