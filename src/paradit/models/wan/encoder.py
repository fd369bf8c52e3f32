"""AutoencoderKLWan's encoder, run a few frames at a time.

Its convolutions are causal in time. diffusers also runs it piece by piece with a feature cache, but holds all
pixels of the video on the device. Here each piece is made and moved there when it is due. The latents are
those of `AutoencoderKLWan.encode`, bit for bit, with and without tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, patchify
from torch import Tensor

from paradit.config.tiles import Grid, Tile, spans
from paradit.models.common.blending import join
from paradit.models.protocol import untold

Pieces = Callable[[], Iterable[Tensor]]
"""Type of a function that returns a video's pixels [1, 3, f, H, W], from -1 to 1, one piece at a time.

The first piece is one frame; each later one has as many frames as a latent frame covers.
"""


class WanEncoder:
    """Encoder of a video's pixels, one latent frame at a time."""

    def __init__(self, vae: AutoencoderKLWan, tile: int | None, told: Callable[[int], None] = untold) -> None:
        """Prepare to encode.

        tile: side of the tiles in pixels; None: whole pictures. told: function that is told how many latent
        frames are encoded so far; one that is encoded in tiles counts when as much is done as all its tiles.
        """
        self._vae, self._tile, self._told = vae, tile, told
        self._num_calls = 0
        """Number of calls of the encoder so far; each encodes one tile of a latent frame."""
        self._patch: int = vae.config["patch_size"] or 1
        self._scale: int = vae.config["scale_factor_spatial"] // self._patch

    @torch.no_grad()
    def encode(self, pieces: Pieces, height: int, width: int) -> Tensor:
        """Return the normalised latents [1, C, F, h, w], fp32, of a video of `height` x `width` pixels.

        They are the most likely ones (the mode), so no noise is drawn.
        """
        if self._tile is None or max(height, width) <= self._tile:
            # As in diffusers, quant_conv takes all frames of a whole picture at once, but those of a tile one
            # latent frame at a time: a product with few rows may round differently.
            encoded = self._vae.quant_conv(self._features(pieces, None, 1))
        else:
            grid = self._grid(self._tile, height, width)
            encoded = join(grid, [self._features(pieces, tile, grid.num_tiles) for tile in grid.tiles], 1)
        mean, _ = encoded.chunk(2, dim=1)
        return self._normalised(mean.float())

    def _grid(self, side: int, height: int, width: int) -> Grid:
        """Return the grid, in latent pixels, of tiles of `side` encoder inputs a side."""
        # In diffusers, a tile to encode is larger than one to decode by the factor `patch_size`: its side
        # counts the encoder's inputs, into each of which several pixels are gathered.
        size = self._scale * self._patch
        return Grid(*(spans(length // size, side // self._scale) for length in (height, width)))

    def _features(self, pieces: Pieces, tile: Tile | None, num_tiles: int) -> Tensor:
        """Return the encoder's output for each latent frame, joined; with a tile, after quant_conv.

        tile: the tile to encode, in latent pixels; None: the whole picture. num_tiles: number of tiles.
        """
        vae, size = self._vae, self._scale * self._patch
        cache: list[Tensor | None] = [None] * sum(
            isinstance(module, WanCausalConv3d) for module in vae.encoder.modules()
        )
        made = []
        for piece in pieces():
            pixels = piece
            if tile is not None:
                rows, columns = (slice(s.start * size, s.stop * size) for s in (tile.rows, tile.columns))
                pixels = piece[..., rows, columns]
            pixels = pixels.to(vae.device, vae.dtype)
            if self._patch > 1:
                pixels = patchify(pixels, patch_size=self._patch)  # type: ignore[no-untyped-call]
            # feat_idx is the encoder's counter of convolutions; each call starts at zero.
            latent = vae.encoder(pixels, feat_cache=cache, feat_idx=[0])
            made.append(latent if tile is None else vae.quant_conv(latent))
            self._num_calls += 1
            if self._num_calls % num_tiles == 0:
                self._told(self._num_calls // num_tiles)
        return torch.cat(made, dim=2)

    def _normalised(self, latents: Tensor) -> Tensor:
        # Multiplying by the inverse, instead of dividing, rounds as diffusers' pipelines do.
        mean, std = (
            torch.tensor(self._vae.config[name]).view(1, -1, 1, 1, 1).to(latents)
            for name in ("latents_mean", "latents_std")
        )
        return (latents - mean) * (1.0 / std)
