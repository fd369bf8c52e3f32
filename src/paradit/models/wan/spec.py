"""Wan folders read without torch: sizes from the configs, and the published models' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from paradit.models.folder_json import is_given, own_settings, read_json, stored_weights
from paradit.models.spec import Defaults, ModelSpec, TransformerSpec, VaeSpec, Weights, convolution, resnet

# WanPipeline.__call__'s max_sequence_length.
TEXT_LENGTH = 512

# What each published model's card recommends (huggingface.co/Wan-AI/*-Diffusers).
WAN_2_1 = Defaults(width=832, height=480, num_frames=81, fps=16, num_inference_steps=50, guidance_scale=5.0)
WAN_2_2_A14B = replace(WAN_2_1, num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0)
WAN_2_2_TI2V = replace(WAN_2_1, width=1280, height=704, num_frames=121, fps=24)

_COMPONENTS = ("text_encoder", "transformer", "transformer_2", "vae")
_FOLDER_KEYS = {"name", "width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale",
                "guidance_scale_2", "negative_prompt", "train_frames"}  # fmt: skip


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a checked WanPipeline folder; `paradit.json` in it overrides the defaults.

    Raises InputError for JSON that cannot be read, or an unknown key in paradit.json.
    """
    index = read_json(folder / "model_index.json")
    own = own_settings(folder, _FOLDER_KEYS)
    experts = [name for name in ("transformer", "transformer_2") if is_given(index, name)]
    transformers = {name: transformer_spec(read_json(folder / name / "config.json")) for name in experts}
    weights = []
    for name in _COMPONENTS:
        if is_given(index, name):
            parameters, file_bytes = stored_weights(folder / name)
            if not parameters:  # not downloaded yet; the VAE's, which are few, stay unknown
                parameters = _expected_parameters(folder, name, transformers)
            weights.append(Weights(component=name, parameters=parameters, file_bytes=file_bytes))
    return ModelSpec(
        name=own.pop("name"),
        folder=folder,
        pipeline_class=index["_class_name"],
        transformers=tuple(transformers.values()),
        boundary_ratio=index.get("boundary_ratio"),
        expand_timesteps=index.get("expand_timesteps", False),
        vae=vae_spec(read_json(folder / "vae" / "config.json")),
        defaults=replace(_published_defaults(index), **own),
        weights=tuple(weights),
        text_encoder_dim=read_json(folder / "text_encoder" / "config.json")["d_model"],
        text_length=TEXT_LENGTH,
    )


def _published_defaults(index: Mapping[str, Any]) -> Defaults:
    if index.get("expand_timesteps"):
        return WAN_2_2_TI2V
    return WAN_2_1 if index.get("boundary_ratio") is None else WAN_2_2_A14B


def transformer_spec(config: Mapping[str, Any]) -> TransformerSpec:
    """The sizes in a WanTransformer3DModel config; missing keys take that class's defaults."""
    in_channels = config.get("in_channels", 16)
    patch_time, patch_height, patch_width = config.get("patch_size", (1, 2, 2))
    spec = TransformerSpec(
        num_attention_heads=config.get("num_attention_heads", 40),
        attention_head_dim=config.get("attention_head_dim", 128),
        num_layers=config.get("num_layers", 40),
        ffn_dim=config.get("ffn_dim", 13824),
        patch_size=(patch_time, patch_height, patch_width),
        in_channels=in_channels,
        out_channels=config.get("out_channels", 16) or in_channels,
        text_dim=config.get("text_dim", 4096),
        freq_dim=config.get("freq_dim", 256),
        max_positions=config.get("rope_max_seq_len", 1024),
        num_parameters=0,
    )
    return replace(spec, num_parameters=_count_parameters(spec, config))


def _count_parameters(spec: TransformerSpec, config: Mapping[str, Any]) -> int:
    width, patch = spec.width, prod(spec.patch_size)
    embedding = _linear(spec.in_channels * patch, width)
    time = _linear(spec.freq_dim, width) + _linear(width, width) + _linear(width, 6 * width)
    text = _linear(spec.text_dim, width) + _linear(width, width)
    image = 0
    if image_dim := config.get("image_dim"):
        # norm, two linears, norm, and the position table.
        image = 2 * image_dim + _linear(image_dim, image_dim) + _linear(image_dim, width) + 2 * width
        image += (config.get("pos_embed_seq_len") or 0) * image_dim
    head = _linear(width, spec.out_channels * patch) + 2 * width

    attention = 4 * _linear(width, width) + 2 * width  # with the norms of q and k
    feed_forward = _linear(width, spec.ffn_dim) + _linear(spec.ffn_dim, width)
    block = 2 * attention + feed_forward + 6 * width
    if config.get("cross_attn_norm", True):
        block += 2 * width
    if added := config.get("added_kv_proj_dim"):
        block += 2 * _linear(added, width) + width
    return embedding + time + text + image + spec.num_layers * block + head


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _expected_parameters(folder: Path, component: str, transformers: Mapping[str, TransformerSpec]) -> int:
    if component in transformers:
        return transformers[component].num_parameters
    if component == "text_encoder":
        return text_encoder_parameters(read_json(folder / component / "config.json"))
    return 0


def text_encoder_parameters(config: Mapping[str, Any]) -> int:
    """Exact count of a UMT5EncoderModel with this config, whose feed-forward is gated."""
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    position_bias = config.get("relative_attention_num_buckets", 32) * config["num_heads"]
    layer = 4 * width * inner + 3 * width * config["d_ff"] + 2 * width + position_bias
    return int(config["vocab_size"] * width + config["num_layers"] * layer + width)


@dataclass(frozen=True, kw_only=True)
class WanVaeSpec(VaeSpec):
    """An AutoencoderKLWan, whose decoder goes latent frame by latent frame."""

    is_residual: bool
    temporal_upsample: tuple[bool, ...]
    """Of each level but the last to be computed, from the deepest on."""
    out_channels: int

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        """As of `VaeSpec`."""
        _, frames, height, width = self.latent_shape(num_frames, height, width)
        channels = self.decoder_channels[::-1]
        deepest, area = channels[0], height * width
        total = convolution(self.z_dim, self.z_dim, 1, frames * area)  # before the decoder
        total += convolution(self.z_dim, deepest, 27, frames * area)
        total += 2 * resnet(deepest, deepest, frames * area)
        total += frames * (8 * area * deepest**2 + 4 * area**2 * deepest)  # attention within each frame
        inputs = deepest
        for level, outputs in enumerate(channels):
            total += resnet(inputs, outputs, frames * area)
            total += self.num_res_blocks * resnet(outputs, outputs, frames * area)
            inputs = outputs
            if level + 1 < len(channels):
                if self.temporal_upsample[level]:
                    # The first frame stays one.
                    total += convolution(outputs, 2 * outputs, 3, (frames - 1) * area)
                    frames = 2 * frames - 1
                area *= 4
                inputs = outputs if self.is_residual else outputs // 2
                total += convolution(outputs, inputs, 9, frames * area)
        return total + convolution(inputs, self.out_channels, 27, frames * area)


def vae_spec(config: Mapping[str, Any]) -> WanVaeSpec:
    """The latent geometry in an AutoencoderKLWan config; missing keys take that class's defaults."""
    base_dim = config.get("decoder_base_dim") or config.get("base_dim", 96)
    multipliers = config.get("dim_mult", (1, 2, 4, 4))
    return WanVaeSpec(
        z_dim=config.get("z_dim", 16),
        temporal_compression=config.get("scale_factor_temporal", 4),
        spatial_compression=config.get("scale_factor_spatial", 8),
        decoder_dim=base_dim * multipliers[0],
        decoder_channels=tuple(base_dim * multiplier for multiplier in multipliers),
        pixel_patch=config.get("patch_size") or 1,
        num_res_blocks=config.get("num_res_blocks", 2),
        is_residual=config.get("is_residual", False),
        temporal_upsample=tuple(config.get("temperal_downsample", (False, True, True)))[::-1],
        out_channels=config.get("out_channels", 3),
    )
