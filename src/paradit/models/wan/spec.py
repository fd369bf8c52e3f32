"""Reader of Wan folders that does not import torch: sizes from configurations, and published defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.options import Option, decode_known
from paradit.models.clip_vision import CLIPVisionConfig, clip_vision_parameters, read_clip_vision
from paradit.models.defaults import Defaults
from paradit.models.folder_json import (
    components,
    own_settings,
    read_index,
    read_json,
    stored_weights,
    usual_name,
)
from paradit.models.spec import CONFIG, FIXED, MAX_SIZE, Layers, ModelSpec, Positive, Size, Weights
from paradit.models.transformer_spec import TransformerSpec
from paradit.models.umt5 import read_umt5, umt5_parameters
from paradit.models.unknown_weights import check_transformer
from paradit.models.wan.vae_spec import vae_spec

# Default max_sequence_length of WanPipeline.__call__.
TEXT_LENGTH = 512

# Recommended values from each published model's card (huggingface.co/Wan-AI/*-Diffusers).
WAN_2_1 = Defaults(width=832, height=480, num_frames=81, fps=16, num_inference_steps=50, guidance_scale=5.0)
WAN_2_1_720P = replace(WAN_2_1, width=1280, height=720)
WAN_2_2_A14B = replace(WAN_2_1, num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0)
WAN_2_2_I2V_A14B = replace(WAN_2_2_A14B, guidance_scale=3.5, guidance_scale_2=3.5)
WAN_2_2_TI2V = replace(WAN_2_1, width=1280, height=704, num_frames=121, fps=24)

FROM_IMAGE = "WanImageToVideoPipeline"

_COMPONENTS = ("text_encoder", "image_encoder", "transformer", "transformer_2", "vae")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Settings of a Wan pipeline besides its components, with the classes' defaults."""

    _class_name: str
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
    """Return the spec (sizes and costs) of a checked folder of a Wan pipeline.

    `paradit.json` in the folder overrides the defaults. Raises InputError for an invalid value in any of the
    folder's files.
    """
    index = read_index(folder)
    pipeline = decode_known(PipelineConfig, index, str(folder / "model_index.json"))
    name, defaults = own_settings(folder, _published_defaults(pipeline, usual_name(folder)))
    there = [part for part in _COMPONENTS if part in components(index)]
    text_encoder = read_umt5(folder / "text_encoder" / CONFIG)
    pictures = read_clip_vision(folder / "image_encoder" / CONFIG) if "image_encoder" in there else None
    transformers: dict[str, TransformerSpec] = {
        part: transformer_spec(read_json(folder / part / CONFIG), str(folder / part / CONFIG), pictures)
        for part in there
        if part.startswith("transformer")
    }
    expected = {part: one.num_parameters for part, one in transformers.items()}
    expected |= {"text_encoder": umt5_parameters(text_encoder)}
    expected |= {"image_encoder": clip_vision_parameters(pictures)} if pictures else {}
    weights = []
    for part in there:
        parameters, file_bytes = stored_weights(folder / part)
        # Weights may not be downloaded yet; the VAE's few parameters then stay unknown.
        parameters = parameters or expected.get(part, 0)
        if part in transformers:
            check_transformer(folder / part, parameters, transformers[part].num_parameters)
        weights.append(Weights(component=part, parameters=parameters, file_bytes=file_bytes))
    spec = ModelSpec(
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
    _check_transformers(spec)
    return _with_pictures(spec)


def _published_defaults(pipeline: PipelineConfig, name: str) -> Defaults:
    if pipeline.expand_timesteps:
        return WAN_2_2_TI2V
    if pipeline.boundary_ratio is None:
        # Of two models that differ in their weights alone, one is for larger videos.
        return WAN_2_1_720P if pipeline._class_name == FROM_IMAGE and "720p" in name.lower() else WAN_2_1
    return WAN_2_2_I2V_A14B if pipeline._class_name == FROM_IMAGE else WAN_2_2_A14B


def joins_channels(spec: ModelSpec) -> bool:
    """Return whether the transformers read pictures as further channels of their input."""
    return spec.pipeline_class == FROM_IMAGE and not spec.expand_timesteps


def _check_transformers(spec: ModelSpec) -> None:
    """Refuse transformers that do not read what the pipeline gives them. Raises InputError."""
    latents = spec.vae.z_dim
    # A mask with a channel for each frame that a latent frame covers, and the encoded pictures.
    others = spec.vae.temporal_compression + latents if joins_channels(spec) else 0
    for transformer in spec.transformers:
        if transformer.in_channels != latents + others:
            raise InputError(
                f"{spec.folder}: the transformer of a {spec.pipeline_class} with this VAE has "
                f"{latents + others} in_channels, got {transformer.in_channels}"
            )
        if transformer.image_dim and not transformer.images:
            raise InputError(
                f"{spec.folder}: the transformer reads pictures, but model_index.json names no image_encoder"
            )


def _with_pictures(spec: ModelSpec) -> ModelSpec:
    """Return the spec with what a request may give, and must give, besides texts. Raises InputError."""
    own = frozenset(spec.defaults.takes)
    text_only = spec.pipeline_class != FROM_IMAGE and not spec.expand_timesteps
    if own and (not text_only or len(spec.transformers) > 1):
        raise InputError(
            f"{spec.folder / 'paradit.json'}: takes is for a text-to-video model with one transformer and "
            f"one timestep for all tokens, and this is a {spec.pipeline_class}"
        )
    if text_only:
        # WanVideoToVideoPipeline has one transformer.
        return replace(spec, takes=own | ({"video"} if len(spec.transformers) == 1 else set()))
    if spec.expand_timesteps:
        return replace(spec, takes=frozenset({"image"}), needs_image=spec.pipeline_class == FROM_IMAGE)
    # A transformer that attends to pictures takes one, or with positions for two pictures always two.
    attended = spec.transformers[0]
    takes = {"image"} if attended.images == 1 else {"image", "last_image"}
    return replace(
        spec,
        takes=frozenset(takes),
        needs_image=True,
        needs_last_image=attended.images == 2,
        # The encoded pictures, and the transformer's input, which has them and the mask as channels.
        latents_held=spec.latents_held + 3,
    )


def transformer_spec(
    config: Mapping[str, object], where: str = "", pictures: CLIPVisionConfig | None = None
) -> TransformerSpec:
    """Return the sizes in a WanTransformer3DModel configuration. Raises InputError.

    where: the path of the configuration file, for error messages. pictures: configuration of the encoder of
    the pictures that the transformer attends to.
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
        image_dim=found.image_dim or 0,
    )
    spec = replace(spec, num_parameters=_count_parameters(spec, found))
    return spec if not found.image_dim or pictures is None else _attending(spec, found, pictures, where)


def _attending(
    spec: TransformerSpec, config: TransformerConfig, pictures: CLIPVisionConfig, where: str
) -> TransformerSpec:
    """Return the sizes with those of the pictures that cross-attention reads. Raises InputError."""
    if config.image_dim != pictures.hidden_size:
        raise InputError(
            f"{where}: image_dim is {config.image_dim}, but image_encoder has a hidden_size of "
            f"{pictures.hidden_size}"
        )
    # With a position for each token, pictures come in pairs: the first frame and the last one.
    positions = config.pos_embed_seq_len
    if positions not in (None, 2 * pictures.tokens):
        raise InputError(
            f"{where}: pos_embed_seq_len must be {2 * pictures.tokens} for two pictures of this "
            f"image_encoder, got {positions}"
        )
    images = 1 if positions is None else 2
    return replace(spec, images=images, image_tokens=images * pictures.tokens)


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
