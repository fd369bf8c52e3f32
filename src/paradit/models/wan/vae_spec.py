"""Configuration, sizes and costs of AutoencoderKLWan, the VAE of the Wan models. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.options import ABOVE_ZERO, Option, decode_known
from paradit.models.spec import FIXED, MAX_LEVELS, MAX_SIZE, Layers, Size
from paradit.models.vae_spec import FP32_BYTES, VaeSpec, convolution, resnet

LATENTS_MEAN = (
    -0.7571,
    -0.7089,
    -0.9113,
    0.1075,
    -0.1745,
    0.9653,
    -0.1517,
    1.5508,
    0.4134,
    -0.0715,
    0.5517,
    -0.3632,
    -0.1922,
    -0.9497,
    0.2503,
    -0.2921,
)
LATENTS_STD = (
    2.8184,
    1.4541,
    2.3275,
    2.6558,
    1.2196,
    1.7708,
    2.6052,
    2.0743,
    3.2687,
    2.1526,
    2.8652,
    1.5579,
    1.6382,
    1.1253,
    2.8251,
    1.916,
)
"""Standard deviations of AutoencoderKLWan's latent channels by default; `LATENTS_MEAN` holds the means."""

PADDED_MAPS, MAPS = 3.3, 2
"""Numbers of feature maps of the encoder's first level that are in memory at its peak, to estimate memory:
those that also hold the two frames before their own, and others.

The first number includes the convolutions' workspace on a GPU, which is taken to be that of the decoder
(`WORKING_MAPS`); without it, it is 2.1 (tests/unit/test_memory_estimate.py).
"""


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Configuration of an AutoencoderKLWan, with the class's defaults."""

    _class_name: Annotated[str, FIXED] = "AutoencoderKLWan"
    base_dim: Size = 96
    decoder_base_dim: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = None
    z_dim: Size = 16
    dim_mult: Annotated[tuple[int, ...], Option(least=1, most=1000)] = (1, 2, 4, 4)
    num_res_blocks: Layers = 2
    attn_scales: Annotated[tuple[float, ...], FIXED] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: Annotated[float, Option(least=0, most=1)] = 0.0
    latents_mean: Annotated[tuple[float, ...], Option()] = LATENTS_MEAN
    latents_std: Annotated[tuple[float, ...], Option(least=ABOVE_ZERO)] = LATENTS_STD
    is_residual: bool = False
    in_channels: Size = 3
    out_channels: Size = 3
    patch_size: Annotated[int | None, Option(least=1, most=16)] = None
    scale_factor_temporal: Size = 4
    scale_factor_spatial: Size = 8

    def __post_init__(self) -> None:
        levels = len(self.dim_mult)
        if not 1 <= levels <= MAX_LEVELS or len(self.temperal_downsample) != levels - 1:
            raise InputError(
                f"dim_mult must have 1 to {MAX_LEVELS} numbers, and temperal_downsample one less, "
                f"got {levels} and {len(self.temperal_downsample)}"
            )
        temporal, spatial = 2 ** sum(self.temperal_downsample), 2 ** (levels - 1) * (self.patch_size or 1)
        for name, value in (("scale_factor_temporal", temporal), ("scale_factor_spatial", spatial)):
            if getattr(self, name) != value:
                raise InputError(f"{name} must be {value} with these levels, got {getattr(self, name)}")
        for name, values in (("latents_mean", self.latents_mean), ("latents_std", self.latents_std)):
            if len(values) != self.z_dim and values not in (LATENTS_MEAN, LATENTS_STD):
                raise InputError(
                    f"{name} must have a number for each of z_dim {self.z_dim}, got {len(values)}"
                )


@dataclass(frozen=True, kw_only=True)
class WanVaeSpec(VaeSpec):
    """Sizes of an AutoencoderKLWan, which runs one latent frame at a time."""

    is_residual: bool
    temporal_downsample: tuple[bool, ...]
    """For each level of the encoder except the last, whether it halves the number of frames."""
    in_channels: int
    out_channels: int
    encoder_dim: int
    """Number of channels of the encoder's first convolution."""
    encoder_channels: tuple[int, ...]
    """Number of channels of each encoder level, the first, full-resolution level first."""

    @property
    def settled_at(self) -> int:
        """Index of the first latent frame of an encoded video that the first frame does not affect."""
        # A causal convolution with a kernel of three reads two frames before its own; each residual block has
        # two of them. `apart` is the number of the video's frames from one of a level's frames to the next.
        reach, apart = 2, 1  # the first convolution
        for halves in (*self.temporal_downsample, False):
            reach += 4 * self.num_res_blocks * apart
            if halves:
                reach, apart = reach + 2 * apart, 2 * apart
        reach += 10 * apart  # the middle block, which has two residual blocks, and the last convolution
        # Latent frame i ends with frame i * apart, and must not reach back to frame 0.
        return reach // apart + 1

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Count the floating-point operations of decoding a whole video.

        Includes convolutions and attention, as torch counts them.
        """
        _, frames, height, width = self.latent_shape(num_frames, height, width)
        channels = self.decoder_channels[::-1]
        deepest, area = channels[0], height * width
        total = convolution(self.z_dim, self.z_dim, 1, frames * area)  # before the decoder
        total += convolution(self.z_dim, deepest, 27, frames * area)
        # The middle block: two residual blocks, with attention between them.
        total += 2 * resnet(deepest, deepest, frames * area)
        total += frames * (8 * area * deepest**2 + 4 * area**2 * deepest)  # attention within each frame
        inputs = deepest
        for level, outputs in enumerate(channels):
            total += resnet(inputs, outputs, frames * area)
            total += self.num_res_blocks * resnet(outputs, outputs, frames * area)
            inputs = outputs
            if level + 1 < len(channels):
                if self.temporal_downsample[-1 - level]:
                    # The first frame is not doubled.
                    total += convolution(outputs, 2 * outputs, 3, (frames - 1) * area)
                    frames = 2 * frames - 1
                area *= 4
                # Upsampling halves the number of channels, except in residual decoders (Wan 2.2).
                inputs = outputs if self.is_residual else outputs // 2
                total += convolution(outputs, inputs, 9, frames * area)
        return total + convolution(inputs, self.out_channels, 27, frames * area)

    def encode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Count the floating-point operations of encoding a whole video.

        Includes convolutions and attention, as torch counts them.
        """
        frames, area = num_frames, (height // self.pixel_patch) * (width // self.pixel_patch)
        total = convolution(self.in_channels, self.encoder_dim, 27, frames * area)
        inputs = self.encoder_dim
        for level, outputs in enumerate(self.encoder_channels):
            total += resnet(inputs, outputs, frames * area)
            total += (self.num_res_blocks - 1) * resnet(outputs, outputs, frames * area)
            inputs = outputs
            if level + 1 < len(self.encoder_channels):
                area //= 4
                total += convolution(outputs, outputs, 9, frames * area)
                if self.temporal_downsample[level]:
                    frames = (frames - 1) // 2 + 1
                    # The first frame is not halved.
                    total += convolution(outputs, outputs, 3, (frames - 1) * area)
        total += 2 * resnet(inputs, inputs, frames * area)
        total += frames * (8 * area * inputs**2 + 4 * area**2 * inputs)  # attention within each frame
        total += convolution(inputs, 2 * self.z_dim, 27, frames * area)
        return total + convolution(2 * self.z_dim, 2 * self.z_dim, 1, frames * area)  # after the encoder

    def encode_bytes(self, height: int, width: int, frames: int, tile: int | None = None) -> int:
        """Estimate the bytes of working memory that the encoder needs, in fp32.

        Tiles are encoded one after another. Every causal convolution keeps its last two frames of a tile. At
        the peak, memory also holds feature maps of the first, full-resolution level. frames: the number of
        frames that are encoded at once. tile: the side, in pixels, of a tile to decode; None: whole pictures.
        """
        area = self.encode_grid(height, width, tile).largest_area
        area *= (self.spatial_compression // self.pixel_patch) ** 2
        kept, inputs = float(self.in_channels), self.encoder_dim
        for level, outputs in enumerate(self.encoder_channels):
            # The first convolution of a level has the channels of the level before it.
            kept += (inputs + (2 * self.num_res_blocks - 1) * outputs) / 4.0**level
            inputs = outputs
        kept += 5 * inputs / 4.0 ** (len(self.encoder_channels) - 1)  # the middle block, and the last one
        # A residual level keeps its input, for its shortcut, and so does its caller.
        maps = PADDED_MAPS * (frames + 2) + (MAPS + 2 * self.is_residual) * frames + min(frames, 2)
        values = maps * self.encoder_dim + frames * self.in_channels + min(frames, 2) * kept
        return FP32_BYTES * area * round(values)


def vae_spec(config: Mapping[str, object], where: str = "") -> WanVaeSpec:
    """Return the latent geometry and sizes in an AutoencoderKLWan configuration. Raises InputError.

    where: the path of the configuration file, for error messages.
    """
    found = decode_known(VaeConfig, config, where)
    base_dim = found.decoder_base_dim or found.base_dim
    return WanVaeSpec(
        z_dim=found.z_dim,
        temporal_compression=found.scale_factor_temporal,
        spatial_compression=found.scale_factor_spatial,
        decoder_dim=base_dim * found.dim_mult[0],
        decoder_channels=tuple(base_dim * multiplier for multiplier in found.dim_mult),
        pixel_patch=found.patch_size or 1,
        num_res_blocks=found.num_res_blocks,
        is_residual=found.is_residual,
        temporal_downsample=found.temperal_downsample,
        in_channels=found.in_channels,
        out_channels=found.out_channels,
        encoder_dim=found.base_dim,
        encoder_channels=tuple(found.base_dim * multiplier for multiplier in found.dim_mult),
    )
