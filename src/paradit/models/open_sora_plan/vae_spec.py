"""Configuration, sizes and costs of WFVAEModel, the VAE of Open-Sora-Plan v1.3. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.limits import MAX_FRAMES
from paradit.config.options import ABOVE_ZERO, Option, decode_known
from paradit.models.spec import FIXED, Layers, Size
from paradit.models.vae_spec import FP32_BYTES, VaeSpec, convolution, resnet

BANDS = 24
"""Number of channels of a video's three colours, transformed by wavelets in time, height and width."""
COMPRESSION = 8
"""Factor by which latents are smaller than the picture, along height and width."""
SCALE = 4
"""Factor by which the decoder's output, a transformed video, is larger than the latents."""
FRAMES_AT_ONCE = 3
"""Largest number of frames in the decoder's output for one latent frame; the video's last one has them."""
WORKING_MAPS = 18
"""Number of feature maps with `decoder_dim` channels that are in memory at the decoder's peak.

The widest layers of its last level have twice as many channels. Measured without the convolutions' workspace:
16.5 to 17.5 (tests/unit/test_memory_estimate.py).
"""

ENCODER_MAPS = 5.5
"""Number of feature maps with `decoder_dim` channels, of each transformed frame, at the encoder's peak.

Measured without the convolutions' workspace: 5.0 to 5.1 (tests/unit/test_memory_estimate.py).
"""


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Configuration of a WFVAEModel, with the defaults of ParaDiT's class."""

    _class_name: Annotated[str, FIXED] = "WFVAEModel"
    latent_dim: Size = 8
    base_channels: Size = 128
    encoder_num_resblocks: Layers = 2
    encoder_energy_flow_hidden_size: Size = 64
    decoder_num_resblocks: Layers = 2
    decoder_energy_flow_hidden_size: Size = 128
    connect_res_layer_num: Layers = 2
    scale: Annotated[tuple[float, ...], Option(least=ABOVE_ZERO)] = (0.18215,) * 8
    shift: Annotated[tuple[float, ...], Option()] = (0.0,) * 8
    use_attention: Annotated[bool, FIXED] = True
    norm_type: Annotated[str, FIXED] = "layernorm"
    t_interpolation: Annotated[str, FIXED] = "trilinear"
    l1_dowmsample_block: Annotated[str, FIXED] = "Downsample"
    l1_downsample_wavelet: Annotated[str, FIXED] = "HaarWaveletTransform2D"
    l2_dowmsample_block: Annotated[str, FIXED] = "Spatial2xTime2x3DDownsample"
    l2_downsample_wavelet: Annotated[str, FIXED] = "HaarWaveletTransform3D"
    l1_upsample_block: Annotated[str, FIXED] = "Upsample"
    l1_upsample_wavelet: Annotated[str, FIXED] = "InverseHaarWaveletTransform2D"
    l2_upsample_block: Annotated[str, FIXED] = "Spatial2xTime2x3DUpsample"
    l2_upsample_wavelet: Annotated[str, FIXED] = "InverseHaarWaveletTransform3D"

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            if len(getattr(self, name)) != self.latent_dim:
                raise InputError(
                    f"{name} must have a number for each of latent_dim {self.latent_dim}, "
                    f"got {len(getattr(self, name))}"
                )


@dataclass(frozen=True, kw_only=True)
class WfVaeSpec(VaeSpec):
    """Sizes of a WFVAEModel (arXiv 2411.17459), a VAE whose decoder ends in a wavelet transform.

    The decoder's last level has half of the video's resolution; the wavelet transform then doubles it.
    """

    flow_channels: int
    """Number of channels of the two branches that carry low frequencies past the decoder's levels."""
    flow_blocks: int
    """Number of residual blocks of each of these branches."""
    encoder_blocks: int
    encoder_flow_channels: int

    @property
    def settled_at(self) -> int:
        """Index beyond every video: all latent frames differ, because each is drawn with noise of its own."""
        return MAX_FRAMES

    def encode_side(self, tile: int) -> int:
        """Return the side, in pixels, of a tile to encode: that of a tile to decode."""
        return tile

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Count the floating-point operations of decoding a whole video, layer by layer."""
        _, frames, height, width = self.latent_shape(num_frames, height, width)
        top, middle, deepest = self.decoder_channels
        flow, blocks = self.flow_channels, self.num_res_blocks
        area = height * width
        rows = frames * area
        total = convolution(self.z_dim, deepest, 27, rows)
        total += resnet(deepest, deepest, rows) + resnet(deepest, deepest + flow, rows)
        total += frames * _attention(deepest, area)
        total += self.flow_blocks * resnet(flow, flow, rows) + convolution(flow, 24, 9, rows)
        total += blocks * resnet(deepest, deepest, rows) + _wavelets(24, rows)
        # The first frame is not doubled.
        frames, area = 2 * frames - 1, 4 * area
        rows = frames * area
        total += convolution(deepest, deepest, 27, rows) + resnet(deepest, deepest + flow, rows)
        total += self.flow_blocks * resnet(flow, flow, rows) + convolution(flow, 12, 9, rows)
        total += resnet(deepest, middle, rows) + (blocks - 1) * resnet(middle, middle, rows)
        total += _wavelets(12, rows)
        rows *= 4
        total += convolution(middle, middle, 9, rows) + resnet(middle, middle, rows)
        total += resnet(middle, top, rows) + resnet(top, top, rows)
        return total + convolution(top, BANDS, 9, rows) + _wavelets(BANDS, rows)

    def decode_bytes(self, height: int, width: int, tile: int | None = None, ranks: int = 1) -> int:
        """Estimate the bytes of working memory that the decoder needs for one latent frame, in fp32.

        Every causal convolution keeps its last two frames, for every tile. At the peak, memory also holds the
        last level's feature maps for one tile. Decoded tiles wait until the last one is ready to be joined.
        tile: the side of a tile, in pixels; None: whole pictures. ranks: the number of ranks that share the
        tiles; the estimate is for the rank with the largest share.
        """
        tiles = self.grid(height, width, tile)
        kept = SCALE**2 * 2 * self._kept_channels * tiles.dealt_areas(ranks)[-1]
        working = SCALE**2 * FRAMES_AT_ONCE * WORKING_MAPS * self.decoder_dim * tiles.largest_area
        # A frame of the transformed video becomes two frames.
        return FP32_BYTES * (round(kept) + working + 2 * FRAMES_AT_ONCE * self._waiting(tiles))

    @property
    def _kept_channels(self) -> float:
        """Number of input channels of all causal convolutions, weighted by their area, at most 1."""
        top, middle, deepest = self.decoder_channels
        flow = 2 * self.flow_blocks * self.flow_channels
        last = 2 * middle + (middle + top) + 2 * top
        before = 3 * deepest + self.flow_channels + flow + (deepest + middle)
        before += 2 * (self.num_res_blocks - 1) * middle
        # Upsampling keeps one frame, not two.
        first = self.z_dim + 4 * deepest + self.flow_channels + flow
        first += 2 * self.num_res_blocks * deepest + deepest // 2
        return last + before / 4 + first / 16

    def encode_bytes(self, height: int, width: int, frames: int, tile: int | None = None) -> int:
        """Estimate the bytes of working memory that the encoder needs, in fp32.

        Tiles are encoded one after another. Causal convolutions keep their last two frames of a tile, and the
        one that halves the frame rate keeps one. At the peak, memory also holds feature maps of the first
        level. frames: the number of frames that are encoded at once. tile: the side, in pixels, of a tile.
        """
        area = (COMPRESSION // self.pixel_patch) ** 2 * self.encode_grid(height, width, tile).largest_area
        top, middle, deepest = self.decoder_channels
        halved = 4 * self.encoder_blocks * middle + middle
        last = 2 * (middle + self.encoder_flow_channels) + 8 * deepest
        working = (frames + 1) // 2 * (ENCODER_MAPS * top + BANDS)
        return round(FP32_BYTES * area * (halved / 4 + last / 16 + working))

    def encode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Count the floating-point operations of encoding a whole video, layer by layer."""
        top, middle, deepest = self.decoder_channels
        flow, blocks = self.encoder_flow_channels, self.encoder_blocks
        frames, area = (num_frames + 1) // 2, height * width // 4
        rows = frames * area
        total = _wavelets(BANDS, rows) + convolution(BANDS, top, 9, rows)
        total += blocks * 2 * convolution(top, top, 9, rows)
        rows //= 4
        total += convolution(top, top, 9, rows) + _wavelets(12, rows) + convolution(12, flow, 9, rows)
        total += convolution(top + flow, middle, 9, rows) + blocks * resnet(middle, middle, rows)
        frames, area = (frames + 1) // 2, area // 16
        rows = frames * area
        total += convolution(middle, middle, 27, rows)
        total += _wavelets(24, rows) + convolution(24, flow, 9, rows)
        total += resnet(middle + flow, deepest, rows) + resnet(deepest, deepest, rows)
        total += frames * _attention(deepest, area)
        return total + convolution(deepest, 2 * self.z_dim, 27, rows)


def _attention(channels: int, area: int) -> int:
    """Count the floating-point operations of attention within one frame, with its linear maps."""
    return 8 * area * channels**2 + 4 * area**2 * channels


def _wavelets(bands: int, positions: int) -> int:
    """Count the floating-point operations of a wavelet transform to `bands` channels, or of its inverse."""
    return convolution(1, bands, 4 if bands == 12 else 8, positions)


def vae_spec(config: Mapping[str, object], where: str = "") -> WfVaeSpec:
    """Return the latent geometry and sizes in a WFVAEModel configuration. Raises InputError.

    where: the path of the configuration file, for error messages.
    """
    found = decode_known(VaeConfig, config, where)
    base = found.base_channels
    return WfVaeSpec(
        z_dim=found.latent_dim,
        temporal_compression=4,
        spatial_compression=COMPRESSION,
        decoder_dim=base,
        decoder_channels=(base, 2 * base, 4 * base),
        pixel_patch=2,
        num_res_blocks=found.decoder_num_resblocks,
        flow_channels=found.decoder_energy_flow_hidden_size,
        flow_blocks=found.connect_res_layer_num,
        encoder_blocks=found.encoder_num_resblocks,
        encoder_flow_channels=found.encoder_energy_flow_hidden_size,
    )
