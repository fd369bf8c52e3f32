"""Reader of Wan folders that does not import torch: sizes from configurations, and published defaults."""

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
from paradit.models.spec import (
    CONFIG,
    FIXED,
    MAX_SIZE,
    Layers,
    ModelSpec,
    Positive,
    Size,
    TransformerSpec,
    Weights,
)
from paradit.models.umt5 import UMT5Config, read_umt5, umt5_parameters
from paradit.models.wan.vae_spec import vae_spec

# Default max_sequence_length of WanPipeline.__call__.
TEXT_LENGTH = 512

# Recommended values from each published model's card (huggingface.co/Wan-AI/*-Diffusers).
WAN_2_1 = Defaults(width=832, height=480, num_frames=81, fps=16, num_inference_steps=50, guidance_scale=5.0)
WAN_2_2_A14B = replace(WAN_2_1, num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0)
WAN_2_2_TI2V = replace(WAN_2_1, width=1280, height=704, num_frames=121, fps=24)

_COMPONENTS = ("text_encoder", "transformer", "transformer_2", "vae")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Settings of a WanPipeline besides its components, with the class's defaults."""

    boundary_ratio: Annotated[float | None, Option(least=0, most=1)] = None
    expand_timesteps: bool = False


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Configuration of a WanTransformer3DModel, with the class's defaults."""

    _class_name: Annotated[str, FIXED] = "WanTransformer3DModel"
    patch_size: Annotated[tuple[int, int, int], Option(least=1, most=MAX_SIZE)] = (1, 2, 2)
    num_attention_heads: Size = 40
    attention_head_dim: Size = 128
    in_channels: Size = 16
    out_channels: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = 16
    text_dim: Size = 4096
    freq_dim: Size = 256
    ffn_dim: Size = 13824
    num_layers: Layers = 40
    cross_attn_norm: bool = True
    qk_norm: Annotated[str | None, FIXED] = "rms_norm_across_heads"
    eps: Positive = 1e-6
    image_dim: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = None
    added_kv_proj_dim: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = None
    rope_max_seq_len: Size = 1024
    pos_embed_seq_len: Annotated[int | None, Option(least=1, most=MAX_SIZE)] = None

    def __post_init__(self) -> None:
        if self.attention_head_dim % 2:
            raise InputError(f"attention_head_dim must be even, got {self.attention_head_dim}")


def read_spec(folder: Path) -> ModelSpec:
    """Return the spec (sizes and costs) of a checked WanPipeline folder.

    `paradit.json` in the folder overrides the defaults. Raises InputError for an invalid value in any of the
    folder's files.
    """
    index = read_index(folder)
    pipeline = decode_known(PipelineConfig, index, str(folder / "model_index.json"))
    name, defaults = own_settings(folder, _published_defaults(pipeline))
    there = components(index)
    transformers: dict[str, TransformerSpec] = {
        name: transformer_spec(read_json(folder / name / CONFIG), str(folder / name / CONFIG))
        for name in ("transformer", "transformer_2")
        if name in there
    }
    text_encoder = read_umt5(folder / "text_encoder" / CONFIG)
    weights = []
    for part in _COMPONENTS:
        if part in there:
            parameters, file_bytes = stored_weights(folder / part)
            if not parameters:  # not downloaded yet; the VAE's few parameters stay unknown
                parameters = _expected_parameters(part, transformers, text_encoder)
            weights.append(Weights(component=part, parameters=parameters, file_bytes=file_bytes))
    return ModelSpec(
        name=name,
        folder=folder,
        pipeline_class=index["_class_name"],
        transformers=tuple(transformers.values()),
        boundary_ratio=pipeline.boundary_ratio,
        expand_timesteps=pipeline.expand_timesteps,
        vae=vae_spec(read_json(folder / "vae" / CONFIG), str(folder / "vae" / CONFIG)),
        defaults=defaults,
        weights=tuple(weights),
        text_encoder_dim=text_encoder.d_model,
        text_length=TEXT_LENGTH,
    )


def _published_defaults(pipeline: PipelineConfig) -> Defaults:
    if pipeline.expand_timesteps:
        return WAN_2_2_TI2V
    return WAN_2_1 if pipeline.boundary_ratio is None else WAN_2_2_A14B


def transformer_spec(config: Mapping[str, object], where: str = "") -> TransformerSpec:
    """Return the sizes in a WanTransformer3DModel configuration. Raises InputError.

    where: the path of the configuration file, for error messages.
    """
    found = decode_known(TransformerConfig, config, where)
    spec = TransformerSpec(
        num_attention_heads=found.num_attention_heads,
        attention_head_dim=found.attention_head_dim,
        num_layers=found.num_layers,
        ffn_dim=found.ffn_dim,
        patch_size=found.patch_size,
        in_channels=found.in_channels,
        out_channels=found.out_channels or found.in_channels,
        text_dim=found.text_dim,
        freq_dim=found.freq_dim,
        max_positions=found.rope_max_seq_len,
        num_parameters=0,
    )
    return replace(spec, num_parameters=_count_parameters(spec, found))


def _count_parameters(spec: TransformerSpec, config: TransformerConfig) -> int:
    width, patch = spec.width, prod(spec.patch_size)
    embedding = _linear(spec.in_channels * patch, width)
    time = _linear(spec.freq_dim, width) + _linear(width, width) + _linear(width, 6 * width)
    text = _linear(spec.text_dim, width) + _linear(width, width)
    image = 0
    if image_dim := config.image_dim:
        # Image embedder: norm, two linears, norm, and the position table.
        image = 2 * image_dim + _linear(image_dim, image_dim) + _linear(image_dim, width) + 2 * width
        image += (config.pos_embed_seq_len or 0) * image_dim
    # With the head's own shift and scale.
    head = _linear(width, spec.out_channels * patch) + 2 * width

    attention = 4 * _linear(width, width) + 2 * width  # with the norms of q and k
    feed_forward = _linear(width, spec.ffn_dim) + _linear(spec.ffn_dim, width)
    # Self- and cross-attention, feed-forward, and six rows of modulation.
    block = 2 * attention + feed_forward + 6 * width
    # The norm before cross-attention may have weights; those before the other two parts have none.
    if config.cross_attn_norm:
        block += 2 * width
    # Keys and values of the image, and the norm of its keys.
    if added := config.added_kv_proj_dim:
        block += 2 * _linear(added, width) + width
    return embedding + time + text + image + spec.num_layers * block + head


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _expected_parameters(
    component: str, transformers: Mapping[str, TransformerSpec], text_encoder: UMT5Config
) -> int:
    if component in transformers:
        return transformers[component].num_parameters
    return umt5_parameters(text_encoder) if component == "text_encoder" else 0
