"""HunyuanVideo folders read without torch: sizes from the configs, and the published model's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from paradit.config.errors import InputError
from paradit.models.folder_json import is_given, own_settings, read_json, stored_weights
from paradit.models.joint_spec import JointTransformerSpec
from paradit.models.spec import (
    FP32_BYTES,
    Defaults,
    ModelSpec,
    VaeSpec,
    Weights,
    convolution,
    resnet,
)

# HunyuanVideoPipeline.__call__'s max_sequence_length and defaults; 24 frames per second is Tencent's own
# (github.com/Tencent-Hunyuan/HunyuanVideo).
TEXT_LENGTH = 256
DEFAULTS = Defaults(
    width=1280, height=720, num_frames=129, fps=24, num_inference_steps=50, guidance_scale=6.0
)

TIME_CHANNELS = 256
"""Of the sinusoids that embed a timestep, or the guidance: fixed in HunyuanVideoConditionEmbedding."""
REFINER_RATIO = 4
"""Of the token refiner's feed-forward, whatever `mlp_ratio` is: HunyuanVideoTokenRefiner's default."""
WORKING_MAPS = 12
"""Of the VAE's last level at once: 11.4 as torch's allocator counts (tests/test_memory.py), and about a
twentieth more for convolutions on a GPU, as for Wan."""
UNBOUNDED = 2**31
"""Rotary angles are computed for the positions that there are, not looked up."""

_COMPONENTS = ("text_encoder", "text_encoder_2", "transformer", "vae")
_FOLDER_KEYS = {"name", "width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale",
                "train_frames"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoTransformerSpec(JointTransformerSpec):
    """A HunyuanVideoTransformer3DModel: `num_layers` counts its double and its single blocks."""

    num_single_layers: int
    num_refiner_layers: int
    pooled_dim: int
    guidance_embeds: bool

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Operations of one forward; the text is refined anew in every step, with its timestep."""
        # A single block's last projection takes the attended values and the inner ones together.
        num_double = self.num_layers - self.num_single_layers
        modulation = 2 * self.width**2 * (num_double * 12 + self.num_single_layers * 3 + 2)
        embedded = 2 * (self._time_products() + self._two_linears(self.pooled_dim))
        blocks = super().flops(tokens, text_tokens, timesteps)
        return blocks + modulation + embedded + self._refiner_flops(text_tokens)

    def cached_values(self, text_tokens: int) -> int:
        """Values that are kept of one prompt over the steps: what the text encoders return."""
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
    """An AutoencoderKLHunyuanVideo, which decodes in tiles."""

    TILE_FRAMES = 17
    TILE_STRIDE = 192
    LATENT_FRAMES_AT_ONCE = 3

    @property
    def default_tile(self) -> int | None:
        """As its model card does: attention over a whole 720p frame would need tens of GB."""
        return self.TILE_PIXELS

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """As of `VaeSpec`, of all tiles, which overlap."""
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
        total += 8 * rows * deepest**2 + 4 * rows**2 * deepest
        inputs, last = deepest, len(channels) - 1
        for level, outputs in enumerate(channels):
            total += resnet(inputs, outputs, frames * area)
            total += self.num_res_blocks * resnet(outputs, outputs, frames * area)
            inputs = outputs
            if level < last:
                area *= 4 if 2**level < self.spatial_compression else 1
                if 2 ** (last - level) <= self.temporal_compression:
                    frames = 2 * frames - 1  # the first one stays one
                total += convolution(outputs, outputs, 27, frames * area)
        return total + convolution(inputs, 3, 27, frames * area)

    def decode_bytes(self, height: int, width: int, tile: int | None = None, ranks: int = 1) -> int:  # noqa: ARG002
        """Estimate of the decoder's working memory, in fp32, with tiles of that side.

        In its last level one tile needs `WORKING_MAPS` of `decoder_dim` channels; the pixels of two groups
        of frames are kept, to blend them; and tiles wait for the last one to be put together, also
        where `ranks` share them. (The attention
        of its middle block, which grows with the square of a tile's area, is not counted.)
        """
        tiles = self.grid(height, width, tile)
        pixels = tiles.largest_area * self.spatial_compression**2
        values = WORKING_MAPS * self.decoder_dim * pixels + 2 * 3 * height * width + self._waiting(tiles)
        return FP32_BYTES * self.TILE_FRAMES * values


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a checked HunyuanVideoPipeline folder; `paradit.json` in it overrides the defaults.

    Raises InputError for JSON that cannot be read, an unknown key in paradit.json, or a model that takes an
    image.
    """
    index = read_json(folder / "model_index.json")
    configs = {
        name: read_json(folder / name / "config.json") for name in _COMPONENTS if is_given(index, name)
    }
    own = own_settings(folder, _FOLDER_KEYS)
    transformer = transformer_spec(configs["transformer"])
    expected = {
        "text_encoder": llama_parameters(configs["text_encoder"]),
        "text_encoder_2": clip_parameters(configs["text_encoder_2"]),
        "transformer": transformer.num_parameters,
    }
    weights = []
    for name in configs:
        parameters, file_bytes = stored_weights(folder / name)
        if not parameters:  # not downloaded yet; the VAE's, which are few, stay unknown
            parameters = expected.get(name, 0)
        weights.append(Weights(component=name, parameters=parameters, file_bytes=file_bytes))
    return ModelSpec(
        name=own.pop("name"),
        folder=folder,
        pipeline_class=index["_class_name"],
        transformers=(transformer,),
        boundary_ratio=None,
        expand_timesteps=False,
        vae=vae_spec(configs["vae"]),
        defaults=replace(DEFAULTS, **own),
        weights=tuple(weights),
        text_encoder_dim=configs["text_encoder"].get("hidden_size", 4096),
        text_length=TEXT_LENGTH,
        embedded_guidance=True,
        one_timestep=True,
        latents_held=3,  # one prediction, and Euler's scheduler keeps nothing
    )


def refuse_image_conditions(config: Mapping[str, Any]) -> None:
    """Raises InputError for a transformer that takes an image beside the text."""
    if condition := config.get("image_condition_type"):
        raise InputError(f"HunyuanVideo with an image (image_condition_type {condition!r}) is not supported")


def transformer_spec(config: Mapping[str, Any]) -> HunyuanVideoTransformerSpec:
    """The sizes in a HunyuanVideoTransformer3DModel config; missing keys take that class's defaults."""
    refuse_image_conditions(config)
    heads, head_dim = config.get("num_attention_heads", 24), config.get("attention_head_dim", 128)
    in_channels, patch = config.get("in_channels", 16), config.get("patch_size", 2)
    num_single = config.get("num_single_layers", 40)
    spec = HunyuanVideoTransformerSpec(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=config.get("num_layers", 20) + num_single,
        num_single_layers=num_single,
        num_refiner_layers=config.get("num_refiner_layers", 2),
        ffn_dim=int(heads * head_dim * config.get("mlp_ratio", 4.0)),
        patch_size=(config.get("patch_size_t", 1), patch, patch),
        in_channels=in_channels,
        out_channels=config.get("out_channels", 16) or in_channels,
        text_dim=config.get("text_embed_dim", 4096),
        pooled_dim=config.get("pooled_projection_dim", 768),
        guidance_embeds=config.get("guidance_embeds", True),
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
    ends += _linear(width, 2 * width)  # of the last norm

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


def llama_parameters(config: Mapping[str, Any]) -> int:
    """Exact count of a LlamaModel with this config; missing keys take that class's defaults."""
    width, inner = config.get("hidden_size", 4096), config.get("intermediate_size", 11008)
    heads = config.get("num_attention_heads", 32)
    head_dim = config.get("head_dim") or width // heads
    key_value_heads = config.get("num_key_value_heads") or heads
    attention = 2 * width * heads * head_dim + 2 * width * key_value_heads * head_dim
    layer = attention + 3 * width * inner + 2 * width
    vocabulary = config.get("vocab_size", 32000) * width
    return int(vocabulary + config.get("num_hidden_layers", 32) * layer + width)


def clip_parameters(config: Mapping[str, Any]) -> int:
    """Exact count of a CLIPTextModel with this config; missing keys take that class's defaults."""
    width, inner = config.get("hidden_size", 512), config.get("intermediate_size", 2048)
    embeddings = config.get("vocab_size", 49408) + config.get("max_position_embeddings", 77)
    layer = 4 * _linear(width, width) + _linear(width, inner) + _linear(inner, width) + 4 * width
    return int(embeddings * width + config.get("num_hidden_layers", 12) * layer + 2 * width)


def vae_spec(config: Mapping[str, Any]) -> HunyuanVideoVaeSpec:
    """The latent geometry in an AutoencoderKLHunyuanVideo config; missing keys take that class's defaults."""
    return HunyuanVideoVaeSpec(
        z_dim=config.get("latent_channels", 16),
        temporal_compression=config.get("temporal_compression_ratio", 4),
        spatial_compression=config.get("spatial_compression_ratio", 8),
        decoder_dim=config.get("block_out_channels", (128,))[0],
        decoder_channels=tuple(config.get("block_out_channels", (128, 256, 512, 512))),
        pixel_patch=1,
        num_res_blocks=config.get("layers_per_block", 2),
    )
