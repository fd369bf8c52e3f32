"""CogVideoX folders read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paradit.models.defaults import Defaults
from paradit.models.folder_json import own_settings, read_json, stored_weights
from paradit.models.joint_spec import JointTransformerSpec
from paradit.models.spec import ModelSpec, VaeSpec, Weights, convolution, resnet

# CogVideoXPipeline.__call__'s defaults, and its model card's 8 frames per second.
DEFAULTS = Defaults(width=720, height=480, num_frames=49, fps=8, num_inference_steps=50, guidance_scale=6.0)


@dataclass(frozen=True, kw_only=True)
class CogVideoXVaeSpec(VaeSpec):
    """An AutoencoderKLCogVideoX."""

    def decode_flops(self, num_frames: int, height: int, width: int) -> int:
        _, frames, rows, columns = self.latent_shape(num_frames, height, width)
        channels, positions = self.decoder_channels[::-1], frames * rows * columns
        total, inputs = convolution(self.z_dim, channels[0], 27, positions), channels[0]
        for level, outputs in enumerate(channels):
            total += resnet(inputs, outputs, positions)
            total += self.num_res_blocks * resnet(outputs, outputs, positions)
            if level + 1 < len(channels):
                positions *= 8 if 2**level < self.temporal_compression else 4
                total += convolution(outputs, outputs, 9, positions)
            inputs = outputs
        return total + convolution(inputs, 3, 27, positions)


def read_spec(folder: Path) -> ModelSpec:
    name, defaults = own_settings(folder, DEFAULTS)
    parts = ("text_encoder", "transformer", "vae")
    text, transformer, vae = (read_json(folder / part / "config.json") for part in parts)
    weights = {part: stored_weights(folder / part) for part in parts}  # counts are the files'
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    channels = tuple(vae["block_out_channels"])
    return ModelSpec(
        name=name,
        folder=folder,
        pipeline_class="CogVideoXPipeline",
        transformers=(
            JointTransformerSpec(
                num_attention_heads=transformer["num_attention_heads"],
                attention_head_dim=transformer["attention_head_dim"],
                num_layers=transformer["num_layers"],
                ffn_dim=4 * width,
                patch_size=(1, transformer["patch_size"], transformer["patch_size"]),
                in_channels=transformer["in_channels"],
                out_channels=transformer["out_channels"],
                text_dim=transformer["text_embed_dim"],
                freq_dim=width,
                max_positions=2**31,
                num_parameters=weights["transformer"][0],
            ),
        ),
        boundary_ratio=None,
        expand_timesteps=False,
        vae=CogVideoXVaeSpec(
            z_dim=vae["latent_channels"],
            temporal_compression=vae["temporal_compression_ratio"],
            spatial_compression=2 ** (len(channels) - 1),
            decoder_dim=channels[0],
            decoder_channels=channels,
            pixel_patch=1,
            num_res_blocks=vae["layers_per_block"],
        ),
        defaults=defaults,
        weights=tuple(Weights(component=p, parameters=n, file_bytes=b) for p, (n, b) in weights.items()),
        text_encoder_dim=text["d_model"],
        text_length=transformer["max_text_seq_length"],
        one_timestep=True,
    )
