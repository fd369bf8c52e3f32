"""AutoencoderKLWan's decoder, run one latent frame at a time.

Its convolutions are causal in time. diffusers also runs it frame by frame with a feature cache, but keeps
every decoded frame until the last one is ready. Here each frame is returned at once, so that memory does not
grow with the video's length. Every tile of the picture has a cache of its own, so that all tiles can advance
together.
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
from paradit.models.common.parking import parked
from paradit.models.protocol import Frames

Cache: TypeAlias = "list[Tensor | str | None]"
"""Type of a tile's cache: the features of earlier frames, one entry for each causal convolution.

Before there are any features, an entry is None or the string "Rep", as in diffusers.
"""


class WanDecoder:
    """Decoder of a video's latents, one latent frame at a time.

    It implements `Decoder`: the pieces of that interface are the decoder's output for each latent frame.
    """

    def __init__(
        self, vae: AutoencoderKLWan, processor: VideoProcessor, latents: Tensor | LatentBlocks, *, park: bool
    ) -> None:
        """Prepare to decode normalised latents [1, C, F, h, w].

        park: whether a tile's cache (features of its earlier frames) is kept in host memory, not on the GPU,
        while other tiles are decoded.
        """
        self._vae, self._video_processor, self._park = vae, processor, park
        self._patch: int = vae.config["patch_size"] or 1
        self._latents = in_blocks(latents)
        self.scale: int = vae.config["scale_factor_spatial"] // self._patch
        self.num_pieces: int = latents.shape[2]

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:
        """Return the shape [1, C, f, H, W] of the decoder's output for latent frame `index` of a tile.

        The first latent frame becomes one frame, each later one four.
        """
        frames = self._vae.config["scale_factor_temporal"] if index else 1
        height, width = tile.rows.size * self.scale, tile.columns.size * self.scale
        return 1, self._vae.config["out_channels"], frames, height, width

    @torch.no_grad()
    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        """Yield the decoder's output [1, C, f, H, W] for a tile, one latent frame at a time.

        The output is not yet unpatched or clamped.
        """
        rows, columns = (slice(span.start, span.stop) for span in (tile.rows, tile.columns))
        whole = (tile.rows.size, tile.columns.size) == tuple(self._latents.shape[3:])
        modules = self._vae.decoder.modules()
        cache: Cache = [None] * sum(isinstance(module, WanCausalConv3d) for module in modules)
        # On a CPU the memory is the same, but parking keeps the heap unfragmented: see `parked`.
        park = not whole and (self._park or self._vae.device.type == "cpu")
        # As in diffusers, post_quant_conv takes all arrived frames of a whole picture at once, but tiles one
        # frame at a time: a product with few rows may round differently.
        coming = self._latents.mapped(self._before_decoder) if whole else self._latents
        for index in range(self.num_pieces):
            frame = coming.frame(index)
            if frame is None:
                return
            z = frame if whole else self._before_decoder(frame[..., rows, columns])
            yield self._next(z, cache, first=index == 0, park=park)

    def _before_decoder(self, latents: Tensor) -> Tensor:
        """Convert normalised latents to the input of the VAE's `decoder` module."""
        z: Tensor = self._vae.post_quant_conv(
            _denormalise(self._vae, latents.to(self._vae.device, self._vae.dtype))
        )
        return z

    def _next(self, z: Tensor, cache: Cache, *, first: bool, park: bool) -> Tensor:
        """Decode a tile's next latent frame, update the tile's cache, and return the decoder's output."""
        vae = self._vae
        here = [part.to(z.device) if isinstance(part, Tensor) else part for part in cache]
        # feat_idx is the decoder's counter of convolutions; each call starts at zero.
        sample: Tensor = vae.decoder(z, feat_cache=here, feat_idx=[0], first_chunk=first)
        if park:
            pairs = zip(here, cache, strict=True)
            here = [parked(part, old) if isinstance(part, Tensor) else part for part, old in pairs]
        cache[:] = here
        return sample

    @torch.no_grad()
    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        """Yield the frames [f, H, W, 3] of each latent frame.

        pictures: the decoder's output for each latent frame, with tiles joined.
        """
        for picture in pictures:
            sample = unpatchify(picture, patch_size=self._patch)  # type: ignore[no-untyped-call]
            yield as_frames(self._video_processor, sample.clamp(-1, 1))


def _denormalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    # Dividing by the inverse, instead of multiplying, rounds as WanPipeline does.
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
        for values in (vae.config["latents_mean"], vae.config["latents_std"])
    )
    return latents / (1.0 / std) + mean
