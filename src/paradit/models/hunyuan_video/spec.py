"""Reader of HunyuanVideo folders that does not import torch: sizes from configurations, and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.options import Option, decode_known
from paradit.models.defaults import Defaults
from paradit.models.folder_json import components, own_settings, read_index, read_json, stored_weights
from paradit.models.joint_spec import JointTransformerSpec
from paradit.models.spec import CONFIG, FIXED, MAX_SIZE, Layers, ModelSpec, Positive, Size, Weights
from paradit.models.unknown_weights import check_transformer
from paradit.models.vae_spec import FP32_BYTES, VaeSpec, convolution, resnet

LayersOrNone = Annotated[int, Option(least=0, most=1000)]

# Defaults of HunyuanVideoPipeline.__call__, such as max_sequence_length; 24 frames per second is from
# Tencent's own code (github.com/Tencent-Hunyuan/HunyuanVideo).
TEXT_LENGTH = 256
DEFAULTS = Defaults(
    width=1280, height=720, num_frames=129, fps=24, num_inference_steps=50, guidance_scale=6.0
)

TIME_CHANNELS = 256
"""Number of channels of the sinusoids that embed a timestep or the guidance scale.

HunyuanVideoConditionEmbedding fixes it.
"""
REFINER_RATIO = 4
"""Ratio of the token refiner's feed-forward width to its width, whatever `mlp_ratio` is.

It is the default of HunyuanVideoTokenRefiner.
"""
WORKING_MAPS = 12
"""Number of feature maps of the VAE decoder's last level that are in memory at its peak, to estimate memory.

Torch's allocator counts 11.4 (tests/unit/test_memory_estimate.py); the convolutions' workspace on a GPU adds
about a twentieth, as it does for Wan's decoder.
"""
UNBOUNDED = 2**31
"""Value of `max_positions` that stands for no limit, because rotary angles are computed when needed, not
looked up."""

_COMPONENTS = ("text_encoder", "text_encoder_2", "transformer", "vae")
_BLOCKS = ("HunyuanVideoDownBlock3D",) * 4, ("HunyuanVideoUpBlock3D",) * 4


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Configuration of a HunyuanVideoTransformer3DModel, with the class's defaults."""

    _class_name: Annotated[str, FIXED] = "HunyuanVideoTransformer3DModel"
    in_channels: Size = 16
    out_channels: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = 16
    num_attention_heads: Size = 24
    attention_head_dim: Size = 128
    num_layers: LayersOrNone = 20
    num_single_layers: LayersOrNone = 40
    num_refiner_layers: LayersOrNone = 2
    mlp_ratio: Positive = 4.0
    patch_size: Size = 2
    patch_size_t: Size = 1
    qk_norm: Annotated[str, FIXED] = "rms_norm"
    guidance_embeds: bool = True
    text_embed_dim: Size = 4096
    pooled_projection_dim: Size = 768
    rope_theta: Positive = 256.0
    rope_axes_dim: Annotated[tuple[int, int, int], Option(least=2, most=MAX_SIZE)] = (16, 56, 56)
    image_condition_type: Annotated[str | None, FIXED] = None

    def __post_init__(self) -> None:
        if not self.num_layers + self.num_single_layers:
            raise InputError("num_layers and num_single_layers must not both be 0")
        if sum(self.rope_axes_dim) != self.attention_head_dim:
            got = f"{self.rope_axes_dim} and {self.attention_head_dim}"
            raise InputError(f"rope_axes_dim must add up to attention_head_dim, got {got}")


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """Configuration of an AutoencoderKLHunyuanVideo, with the class's defaults."""

    _class_name: Annotated[str, FIXED] = "AutoencoderKLHunyuanVideo"
    in_channels: Size = 3
    out_channels: Size = 3
    latent_channels: Size = 16
    down_block_types: Annotated[tuple[str, ...], FIXED] = _BLOCKS[0]
    up_block_types: Annotated[tuple[str, ...], FIXED] = _BLOCKS[1]
    block_out_channels: Annotated[tuple[int, int, int, int], Option(least=1, most=MAX_SIZE)] = (
        *(128, 256, 512, 512),
    )
    layers_per_block: Layers = 2
    act_fn: Annotated[str, FIXED] = "silu"
    norm_num_groups: Size = 32
    scaling_factor: Positive = 0.476986
    spatial_compression_ratio: Annotated[int, FIXED] = 8
    temporal_compression_ratio: Annotated[int, FIXED] = 4
    mid_block_add_attention: Annotated[bool, FIXED] = True


@dataclass(frozen=True, kw_only=True)
class LlamaSizes:
    """Fields that are read from a LlamaModel's configuration, with the class's defaults."""

    vocab_size: Size = 32000
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Layers = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = None
    head_dim: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = None


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """Fields that are read from a CLIPTextModel's configuration, with the class's defaults."""

    vocab_size: Size = 49408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    num_hidden_layers: Layers = 12
    max_position_embeddings: Size = 77


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoTransformerSpec(JointTransformerSpec):
    """Sizes of a HunyuanVideoTransformer3DModel; `num_layers` counts double and single blocks together."""

    num_single_layers: int
    num_refiner_layers: int
    pooled_dim: int
    guidance_embeds: bool

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Count the floating-point operations of one forward pass, including the text's token refiner."""
        # A single block's last projection takes the attended values and the inner ones together.
        num_double = self.num_layers - self.num_single_layers
        # Six rows of modulation for the video and six for the text, three in a single block, two for the last
        # norm.
        modulation = 2 * self.width**2 * (num_double * 12 + self.num_single_layers * 3 + 2)
        embedded = 2 * (self._time_products() + self._two_linears(self.pooled_dim))
        blocks = super().flops(tokens, text_tokens, timesteps)
        return blocks + modulation + embedded + self._refiner_flops(text_tokens)

    def cached_values(self, text_tokens: int) -> int:
        """Count the values that are kept for one prompt during denoising: the text encoders' outputs."""
        return super().cached_values(text_tokens) + self.pooled_dim

    def _refiner_flops(self, text_tokens: int) -> int:
        width = self.width
        attention = 8 * text_tokens * width**2 + 4 * text_tokens**2 * width
        feed_forward = 4 * text_tokens * width * REFINER_RATIO * width
        gates = 4 * width**2
        condition = 2 * (self._two_linears(self.freq_dim) + self._two_linears(self.text_dim))
        entrance = 2 * text_tokens * self.text_dim * width
        return self.num_refiner_layers * (attention + feed_forward + gates) + condition + entrance

    def _time_products(self) -> int:
        return (2 if self.guidance_embeds else 1) * self._two_linears(self.freq_dim)

    def _two_linears(self, inputs: int) -> int:
        return inputs * self.width + self.width**2


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoVaeSpec(VaeSpec):
    """Sizes of an AutoencoderKLHunyuanVideo, which decodes in tiles."""

    TILE_FRAMES = 17
    TILE_STRIDE = 192
    LATENT_FRAMES_AT_ONCE = 3

    @property
    def default_tile(self) -> int | None:
        """Side, in pixels, of the tiles that are decoded if the request sets none, as in the model card.

        Attention over a whole 720p frame would need tens of GB.
        """
        return self.TILE_PIXELS

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """Count the floating-point operations of decoding a whole video in overlapping tiles."""
        _, frames, height, width = self.latent_shape(num_frames, height, width)
        most = (self.TILE_FRAMES - 1) // self.temporal_compression
        stride = self.LATENT_FRAMES_AT_ONCE
        groups = [min(most + 1, frames - start) for start in range(0, frames - 1, stride)]
        return sum(
            self._tile_flops(group, tile_height, tile_width)
            for group in (groups if frames > most else [frames])
            for tile_height in self._tiles(height, width, height)
            for tile_width in self._tiles(height, width, width)
        )

    def _tiles(self, height: int, width: int, side: int) -> list[int]:
        size, stride = (pixels // self.spatial_compression for pixels in (self.TILE_PIXELS, self.TILE_STRIDE))
        if max(height, width) <= size:
            return [side]
        return [min(size, side - start) for start in range(0, side, stride)]

    def _tile_flops(self, frames: int, height: int, width: int) -> int:
        channels, area = self.decoder_channels[::-1], height * width
        deepest, rows = channels[0], frames * area
        total = convolution(self.z_dim, self.z_dim, 1, rows)  # before the decoder
        total += convolution(self.z_dim, deepest, 27, rows) + 2 * resnet(deepest, deepest, rows)
        # Attention over all frames together, in the middle block.
        total += 8 * rows * deepest**2 + 4 * rows**2 * deepest
        inputs, last = deepest, len(channels) - 1
        for level, outputs in enumerate(channels):
            total += resnet(inputs, outputs, frames * area)
            total += self.num_res_blocks * resnet(outputs, outputs, frames * area)
            inputs = outputs
            if level < last:
                # The first levels double height and width, the last ones the number of frames.
                area *= 4 if 2**level < self.spatial_compression else 1
                if 2 ** (last - level) <= self.temporal_compression:
                    frames = 2 * frames - 1  # the first frame is not doubled
                total += convolution(outputs, outputs, 27, frames * area)
        return total + convolution(inputs, 3, 27, frames * area)

    def decode_bytes(self, height: int, width: int, tile: int | None = None, ranks: int = 1) -> int:  # noqa: ARG002
        """Estimate the bytes of working memory that the decoder needs, in fp32.

        The decoder's last level needs `WORKING_MAPS` feature maps of `decoder_dim` channels for one tile. The
        pixels of two groups of frames are kept, to blend them. Decoded tiles wait until the last one is ready
        to be joined, however many `ranks` share the tiles. Attention in the middle block, which grows with
        the square of a tile's area, is not counted. tile: the side of a tile, in pixels; None: decoding
        without tiles.
        """
        tiles = self.grid(height, width, tile)
        pixels = tiles.largest_area * self.spatial_compression**2
        values = WORKING_MAPS * self.decoder_dim * pixels + 2 * 3 * height * width + self._waiting(tiles)
        return FP32_BYTES * self.TILE_FRAMES * values


def read_spec(folder: Path) -> ModelSpec:
    """Return the spec (sizes and costs) of a checked HunyuanVideoPipeline folder.

    `paradit.json` in the folder overrides the defaults. Raises InputError for an invalid value in any of the
    folder's files.
    """
    index = read_index(folder)
    names = [name for name in _COMPONENTS if name in components(index)]
    files = {name: folder / name / CONFIG for name in names}
    configs = {name: read_json(path) for name, path in files.items()}
    name, defaults = own_settings(folder, DEFAULTS, ("guidance_scale_2", "negative_prompt"))
    transformer = transformer_spec(configs["transformer"], str(files["transformer"]))
    llama = decode_known(LlamaSizes, configs["text_encoder"], str(files["text_encoder"]))
    clip = decode_known(ClipSizes, configs["text_encoder_2"], str(files["text_encoder_2"]))
    expected = {
        "text_encoder": llama_parameters(llama),
        "text_encoder_2": clip_parameters(clip),
        "transformer": transformer.num_parameters,
    }
    weights = []
    for part in names:
        parameters, file_bytes = stored_weights(folder / part)
        if not parameters:  # not downloaded yet; the VAE's few parameters stay unknown
            parameters = expected.get(part, 0)
        if part == "transformer":
            check_transformer(folder / part, parameters, transformer.num_parameters)
        weights.append(Weights(component=part, parameters=parameters, file_bytes=file_bytes))
    return ModelSpec(
        name=name,
        folder=folder,
        pipeline_class=index["_class_name"],
        transformers=(transformer,),
        vae=vae_spec(configs["vae"], str(files["vae"])),
        defaults=defaults,
        weights=tuple(weights),
        text_encoder_dim=llama.hidden_size,
        text_length=TEXT_LENGTH,
        embedded_guidance=True,
        one_timestep=True,
        given_sigmas=True,
        latents_held=1,  # the copy in bf16; there is no other branch
        scheduler_holds=0,
    )


def transformer_spec(config: Mapping[str, object], where: str = "") -> HunyuanVideoTransformerSpec:
    """Return the sizes in a HunyuanVideoTransformer3DModel configuration.

    where: the path of the configuration file, for error messages. Raises InputError, also for a transformer
    that takes an image beside the text.
    """
    found = decode_known(TransformerConfig, config, where)
    spec = HunyuanVideoTransformerSpec(
        num_attention_heads=found.num_attention_heads,
        attention_head_dim=found.attention_head_dim,
        num_layers=found.num_layers + found.num_single_layers,
        num_single_layers=found.num_single_layers,
        num_refiner_layers=found.num_refiner_layers,
        ffn_dim=int(found.num_attention_heads * found.attention_head_dim * found.mlp_ratio),
        patch_size=(found.patch_size_t, found.patch_size, found.patch_size),
        in_channels=found.in_channels,
        out_channels=found.out_channels or found.in_channels,
        text_dim=found.text_embed_dim,
        pooled_dim=found.pooled_projection_dim,
        guidance_embeds=found.guidance_embeds,
        freq_dim=TIME_CHANNELS,
        max_positions=UNBOUNDED,
        num_parameters=0,
    )
    return replace(spec, num_parameters=_count_parameters(spec))


def _count_parameters(spec: HunyuanVideoTransformerSpec) -> int:
    width, ffn, patch = spec.width, spec.ffn_dim, prod(spec.patch_size)
    time = _linear(spec.freq_dim, width) + _linear(width, width)
    pooled = _linear(spec.pooled_dim, width) + _linear(width, width)
    condition = (2 if spec.guidance_embeds else 1) * time + pooled
    ends = _linear(spec.in_channels * patch, width) + _linear(width, spec.out_channels * patch)
    ends += _linear(width, 2 * width)  # the last norm

    inner = REFINER_RATIO * width
    refiner = 4 * _linear(width, width) + _linear(width, inner) + _linear(inner, width)
    refiner += 4 * width + _linear(width, 2 * width)  # two norms, and the gates
    text = time + 2 * _linear(spec.text_dim, width) + _linear(width, width)
    text += spec.num_refiner_layers * refiner

    qk_norms = 2 * spec.attention_head_dim
    stream = 4 * _linear(width, width) + qk_norms + _linear(width, ffn) + _linear(ffn, width)
    double = 2 * (stream + _linear(width, 6 * width))
    single = 3 * _linear(width, width) + qk_norms + _linear(width, ffn) + _linear(width + ffn, width)
    single += _linear(width, 3 * width)
    num_double = spec.num_layers - spec.num_single_layers
    return condition + ends + text + num_double * double + spec.num_single_layers * single


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def llama_parameters(config: LlamaSizes) -> int:
    """Return the exact number of parameters of a LlamaModel with this configuration."""
    width, heads = config.hidden_size, config.num_attention_heads
    head_dim = config.head_dim or width // heads
    # Keys and values may have fewer heads than queries; linear layers have no bias.
    attention = 2 * width * heads * head_dim + 2 * width * (config.num_key_value_heads or heads) * head_dim
    layer = attention + 3 * width * config.intermediate_size + 2 * width
    return config.vocab_size * width + config.num_hidden_layers * layer + width


def clip_parameters(config: ClipSizes) -> int:
    """Return the exact number of parameters of a CLIPTextModel with this configuration."""
    width, inner = config.hidden_size, config.intermediate_size
    embeddings = config.vocab_size + config.max_position_embeddings
    # Attention, feed-forward, and two norms with a bias.
    layer = 4 * _linear(width, width) + _linear(width, inner) + _linear(inner, width) + 4 * width
    return embeddings * width + config.num_hidden_layers * layer + 2 * width


def vae_spec(config: Mapping[str, object], where: str = "") -> HunyuanVideoVaeSpec:
    """Return the latent geometry and sizes in an AutoencoderKLHunyuanVideo configuration. Raises InputError.

    where: the path of the configuration file, for error messages.
    """
    found = decode_known(VaeConfig, config, where)
    return HunyuanVideoVaeSpec(
        z_dim=found.latent_channels,
        temporal_compression=found.temporal_compression_ratio,
        spatial_compression=found.spatial_compression_ratio,
        decoder_dim=found.block_out_channels[0],
        decoder_channels=found.block_out_channels,
        pixel_patch=1,
        num_res_blocks=found.layers_per_block,
    )
