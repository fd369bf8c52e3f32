"""Reader of CogVideoX folders. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.config.options import Option, decode_known
from paradit.models.defaults import Defaults
from paradit.models.folder_json import own_settings, read_json, stored_weights
from paradit.models.joint_spec import JointTransformerSpec
from paradit.models.spec import CONFIG, FIXED, Layers, ModelSpec, Size, Weights
from paradit.models.vae_spec import VaeSpec, convolution, resnet

# CogVideoXPipeline.__call__'s defaults, and its model card's 8 frames per second.
DEFAULTS = Defaults(width=720, height=480, num_frames=49, fps=8, num_inference_steps=50, guidance_scale=6.0)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    num_attention_heads: Size = 30
    attention_head_dim: Size = 64
    in_channels: Size = 16
    out_channels: Size = 16
    num_layers: Layers = 30
    text_embed_dim: Size = 4096
    patch_size: Size = 2
    patch_size_t: Annotated[int | None, FIXED] = None
    max_text_seq_length: Size = 226


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    block_out_channels: Annotated[tuple[int, ...], Option(least=1, most=10**4)] = (128, 256, 256, 512)
    latent_channels: Size = 16
    layers_per_block: Layers = 3
    temporal_compression_ratio: Annotated[float, Option(least=1, most=16)] = 4


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    d_model: Size


class CogVideoXVaeSpec(VaeSpec):
    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        _, frames, rows, columns = self.latent_shape(num_frames, height, width)
        channels, positions = self.decoder_channels[::-1], frames * rows * columns
        total = convolution(self.z_dim, channels[0], 27, positions)
        for level, (before, after) in enumerate(zip(channels[:1] + channels, channels, strict=False)):
            positions *= 1 if level == 0 else 8 if 2**level <= self.temporal_compression else 4
            total += resnet(before, after, positions) + self.num_res_blocks * resnet(after, after, positions)
        return total + convolution(channels[-1], 3, 27, positions)


def read_spec(folder: Path) -> ModelSpec:
    parts = {"text_encoder": TextEncoderConfig, "transformer": TransformerConfig, "vae": VaeConfig}
    paths = [folder / part / CONFIG for part in parts]
    text, transformer, vae = map(decode_known, parts.values(), map(read_json, paths), map(str, paths))
    weights = {part: stored_weights(folder / part) for part in parts}  # counts are the files'
    own = {"num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "out_channels"}
    width = transformer.num_attention_heads * transformer.attention_head_dim
    name, defaults = own_settings(folder, DEFAULTS)
    cut = JointTransformerSpec(
        **{field: getattr(transformer, field) for field in own},
        ffn_dim=4 * width,
        patch_size=(1, transformer.patch_size, transformer.patch_size),
        text_dim=transformer.text_embed_dim,
        freq_dim=width,
        max_positions=2**31,
        num_parameters=weights["transformer"][0],
    )
    return ModelSpec(
        name=name,
        folder=folder,
        pipeline_class="CogVideoXPipeline",
        transformers=(cut,),
        vae=CogVideoXVaeSpec(
            z_dim=vae.latent_channels,
            temporal_compression=int(vae.temporal_compression_ratio),
            spatial_compression=2 ** (len(vae.block_out_channels) - 1),
            decoder_dim=vae.block_out_channels[0],
            decoder_channels=vae.block_out_channels,
            pixel_patch=1,
            num_res_blocks=vae.layers_per_block,
        ),
        defaults=defaults,
        weights=tuple(Weights(component=p, parameters=n, file_bytes=b) for p, (n, b) in weights.items()),
        text_encoder_dim=text.d_model,
        text_length=transformer.max_text_seq_length,
        one_timestep=True,
    )
