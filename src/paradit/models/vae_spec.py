"""Sizes and costs of a video autoencoder (VAE), as far as its decoder's time and memory depend on them.

Loads no weights and does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from paradit.config.tiles import SIDES_APART, Grid, grid, spans

FP32_BYTES = 4
WORKING_MAPS = 14
"""Number of feature maps of a VAE decoder's last level that are in memory at its peak, to estimate memory.

The convolutions' workspace is included. Measured: 13.7 on a GPU (benchmarks/planner_gpu.py, eight peaks
within 1 %), and 13.0 without the workspace (tests/unit/test_memory_estimate.py).
"""


@dataclass(frozen=True, kw_only=True)
class VaeSpec(ABC):
    """Sizes of a video autoencoder: its latent geometry, and enough of its decoder to estimate memory."""

    z_dim: int
    temporal_compression: int
    spatial_compression: int
    decoder_dim: int
    """Number of channels of the decoder's last, full-resolution level."""
    pixel_patch: int
    """Factor by which the decoder's output is smaller than the picture, along height and width.

    Channels of the output are then rearranged into pixels.
    """
    num_res_blocks: int

    decoder_channels: tuple[int, ...] = ()
    """Number of channels of each decoder level, the last, full-resolution level first."""

    LATENT_FRAMES_AT_ONCE = 1
    """Number of new latent frames in each call of the decoder after its first call."""
    TILE_PIXELS: ClassVar[int] = 256
    """Side of a tile, in pixels, in diffusers' `enable_tiling()`."""

    @property
    def default_tile(self) -> int | None:
        """Side, in pixels, of the tiles that are decoded if the request sets none; None: whole pictures."""
        return None

    @property
    def tile_multiple(self) -> int:
        """Number of pixels that a tile's side must be a multiple of, so that tiles begin at latent pixels."""
        return SIDES_APART * self.spatial_compression

    def grid(self, height: int, width: int, tile: int | None) -> Grid:
        """Return the grid of tiles, in latent pixels, that covers a picture of `height` x `width` pixels.

        tile: the side of a tile, in pixels; None: one tile, the whole picture.
        """
        scale = self.spatial_compression
        return grid(height // scale, width // scale, None if tile is None else tile // scale)

    def encode_grid(self, height: int, width: int, tile: int | None) -> Grid:
        """Return the grid of tiles, in latent pixels, in which a picture is encoded.

        tile: the side of a tile to decode, in pixels; None: one tile, the whole picture.
        """
        if tile is None or max(height, width) <= tile:
            return self.grid(height, width, None)
        scale = self.spatial_compression
        side = self.encode_side(tile) // scale
        return Grid(spans(height // scale, side), spans(width // scale, side))

    def encode_side(self, tile: int) -> int:
        """Return the side, in pixels, of a tile to encode. tile: the side of a tile to decode, in pixels."""
        return tile * self.pixel_patch  # as in diffusers

    def smaller_tile(self, height: int, width: int, tile: int | None) -> int | None:
        """Return the side, in pixels, of tiles that need less memory than tiles with side `tile`.

        The side is half of `tile`; after a whole picture, it is the side that diffusers uses, or half the
        picture if that is smaller. Returns None if tiles already have the smallest side, `tile_multiple`.
        """
        side = max(height, width)
        if tile is not None and tile < side:
            side = tile
            wanted = side // 2
        else:
            wanted = min(self.TILE_PIXELS, side // 2)
        found = max(wanted // self.tile_multiple, 1) * self.tile_multiple
        return found if found < side else None

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (channels, frames, height, width) of a video's latents.

        The video's sizes must be divisible by the VAE's compression.
        """
        frames = (num_frames - 1) // self.temporal_compression + 1
        return self.z_dim, frames, height // self.spatial_compression, width // self.spatial_compression

    @property
    def decoder_convolutions(self) -> int:
        """Approximate number of the decoder's convolutions.

        Each residual block has two; a level has about two more, which enlarge its result or change its number
        of channels. The middle block has four, and one comes before all levels, one after them.
        """
        levels = len(self.decoder_channels) or 1
        return (2 * (self.num_res_blocks + 1) + 2) * levels + 6

    @abstractmethod
    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Count the floating-point operations of decoding a whole video.

        Includes convolutions and attention, as torch counts them.
        """

    @property
    def settled_at(self) -> int:
        """Index of the first latent frame of an encoded video that the first frame does not affect.

        Only VAEs of models that make videos from pictures have it, and `encode_flops`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not encode pictures")

    def encode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Count the floating-point operations of encoding a whole video, as `decode_flops` does."""
        raise NotImplementedError(f"{type(self).__name__} does not encode pictures")

    def encode_bytes(self, height: int, width: int, frames: int, tile: int | None = None) -> int:  # noqa: ARG002
        """Estimate the bytes of working memory that the encoder needs, in fp32.

        It is taken to be that of a decode, unless a VAE knows better. frames: the number of frames that are
        encoded at once. tile: the side, in pixels, of a tile to decode; None: whole pictures.
        """
        is_whole = self.encode_grid(height, width, tile).num_tiles == 1
        return self.decode_bytes(height, width, None if is_whole else tile)

    def decode_bytes(self, height: int, width: int, tile: int | None = None, ranks: int = 1) -> int:
        """Estimate the bytes of working memory that the decoder needs for one latent frame, in fp32.

        Every causal convolution keeps its last two frames, for every tile. At the peak, memory also holds the
        last level's feature maps for one tile of one latent frame. Decoded tiles wait until the last one is
        ready to be joined. tile: the side of a tile, in pixels; None: whole pictures. ranks: the number of
        ranks that share the tiles; the estimate is for the rank with the largest share.
        """
        tiles = self.grid(height, width, tile)
        areas = (self.spatial_compression // self.pixel_patch) ** 2
        convolutions = 2 * (self.num_res_blocks + 1)
        channels = self.decoder_channels or (self.decoder_dim,)
        # A level has a quarter of the pixels of the level after it.
        kept = self.decoder_dim + sum(convolutions * dim / 4.0**level for level, dim in enumerate(channels))
        working = WORKING_MAPS * self.decoder_dim * self.temporal_compression * tiles.largest_area
        values = areas * (2 * round(kept) * tiles.dealt_areas(ranks)[-1] + working)
        return FP32_BYTES * (values + self.temporal_compression * self._waiting(tiles))

    def _waiting(self, tiles: Grid) -> int:
        """Return how many numbers a frame's decoded tiles and the picture joined of them hold together."""
        if tiles.num_tiles == 1:
            return 0
        # Tiles overlap, so together they have more pixels than the picture.
        picture = sum(span.kept for span in tiles.rows) * sum(span.kept for span in tiles.columns)
        return 3 * self.spatial_compression**2 * (tiles.area + picture)


def convolution(inputs: int, outputs: int, kernel: int, positions: int) -> int:
    """Count the floating-point operations of a convolution.

    kernel: the number of elements of its kernel, such as 27 for 3x3x3. positions: the number of output
    positions.
    """
    return 2 * inputs * outputs * kernel * positions


def resnet(inputs: int, outputs: int, positions: int) -> int:
    """Count the floating-point operations of a residual block with two 3x3x3 convolutions.

    Includes a 1x1x1 shortcut if the number of channels changes.
    """
    shortcut = convolution(inputs, outputs, 1, positions) if inputs != outputs else 0
    return (
        convolution(inputs, outputs, 27, positions) + convolution(outputs, outputs, 27, positions) + shortcut
    )
