"""Reader of Open-Sora-Plan v1.3 folders that does not import torch: sizes, costs and defaults.

The published checkpoints (github.com/PKU-YuanGroup/Open-Sora-Plan) are not in diffusers' pipeline format.
ParaDiT runs folders with this layout:

    model_index.json    `_class_name` is `PIPELINE`, and the components are those of `COMPONENTS`
    transformer/        config.json and diffusion_pytorch_model*.safetensors, as published; its `_class_name`
                        is OpenSoraT2V_v1_3, or OpenSoraInpaint_v1_3 for the model that takes pictures
    vae/                config.json of a WFVAEModel, and the weights of merged.ckpt under their published
                        names, as diffusion_pytorch_model.safetensors
    text_encoder/       config.json and model*.safetensors of an MT5EncoderModel
    tokenizer/          tokenizer_config.json, and spiece.model or tokenizer.json
    scheduler/          scheduler_config.json, which holds `SCHEDULER`
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from paradit.config.options import decode_known
from paradit.models.defaults import Defaults
from paradit.models.folder_json import read_index, read_json
from paradit.models.open_sora_plan.vae_spec import vae_spec
from paradit.models.spec import CONFIG, Layers, ModelSpec, Size, TransformerSpec, Weights
from paradit.models.umt5 import read_umt5, umt5_parameters

PIPELINE = "OpenSoraPlanPipeline"
COMPONENTS = {
    "scheduler": ("diffusers", "EulerAncestralDiscreteScheduler"),
    "text_encoder": ("transformers", "MT5EncoderModel"),
    "tokenizer": ("transformers", "T5TokenizerFast"),
    "transformer": ("paradit", "OpenSoraT2V_v1_3"),
    "vae": ("paradit", "WFVAEModel"),
}
"""Mapping from the name of each component to the library and class that model_index.json states for it."""
SCHEDULER = {
    "_class_name": "EulerAncestralDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
"""Configuration of the scheduler with which the authors make videos
(scripts/text_condition/gpu/sample_t2v_v1_3.sh and opensora/utils/sample_utils.py)."""
TEXT_LENGTH = 512
DEFAULTS = Defaults(width=640, height=352, num_frames=93, fps=18, num_inference_steps=100, guidance_scale=7.5)


@dataclass(frozen=True, kw_only=True)
class OpenSoraPlanTransformerSpec(TransformerSpec):
    """Sizes of an OpenSoraT2V_v1_3: Wan's architecture, with sparse attention in all layers except four."""

    full_layers: int = 4
    sparsity: int = 4
    """Number n such that each query of a sparse layer attends only to every n-th key."""

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Count the floating-point operations of one forward pass, including the text's keys and values."""
        return super().flops(tokens, text_tokens, timesteps) + super().context_flops(text_tokens)

    def self_attention_flops(self, tokens: int, text_tokens: int) -> int:  # noqa: ARG002
        """Count the floating-point operations of all layers' self-attention, except its linear projections.

        A sparse layer needs 1/`sparsity` of the operations of a layer in which all tokens attend to all.
        """
        full = 4 * tokens**2 * self.width
        return full * self.full_layers + full // self.sparsity * (self.num_layers - self.full_layers)

    def context_flops(self, text_tokens: int) -> int:  # noqa: ARG002
        """Return 0: the text's keys and values are computed in every step, and `flops` counts them."""
        return 0


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Fields that are read from an OpenSoraT2V_v1_3's configuration."""

    num_attention_heads: Size
    attention_head_dim: Size
    num_layers: Layers
    patch_size: Size
    patch_size_t: Size
    in_channels: Size
    out_channels: Size
    caption_channels: Size
    sparse_n: Size


def read_spec(folder: Path) -> ModelSpec:
    """Return the spec (sizes and costs) of a folder that `models.published` wrote for this model."""
    index, text = read_index(folder), read_umt5(folder / "text_encoder" / CONFIG)
    transformer, vae = (folder / name / CONFIG for name in ("transformer", "vae"))
    spec = transformer_spec(decode_known(TransformerConfig, read_json(transformer), str(transformer)))
    counts = {
        "text_encoder": umt5_parameters(text),
        "transformer": spec.num_parameters,
        "vae": 0,
    }
    return ModelSpec(
        name=folder.name,
        folder=folder,
        pipeline_class=index["_class_name"],
        transformers=(spec,),
        vae=vae_spec(read_json(vae), str(vae)),
        defaults=DEFAULTS,
        weights=tuple(Weights(component=c, parameters=n, file_bytes=0) for c, n in counts.items()),
        text_encoder_dim=text.d_model,
        text_length=TEXT_LENGTH,
    )


def transformer_spec(config: TransformerConfig) -> OpenSoraPlanTransformerSpec:
    """Return the sizes in an OpenSoraT2V_v1_3 configuration."""
    spec = OpenSoraPlanTransformerSpec(
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        num_layers=config.num_layers,
        ffn_dim=4 * config.num_attention_heads * config.attention_head_dim,
        patch_size=(config.patch_size_t, config.patch_size, config.patch_size),
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.caption_channels,
        freq_dim=256,
        max_positions=2**31,
        num_parameters=0,
        sparsity=config.sparse_n,
    )
    return replace(spec, num_parameters=_count_parameters(spec))


def _count_parameters(spec: OpenSoraPlanTransformerSpec) -> int:
    width, patch = spec.width, prod(spec.patch_size)

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    ends = linear(spec.in_channels * patch, width) + linear(width, spec.out_channels * patch) + 2 * width
    text = linear(spec.text_dim, width) + linear(width, width)
    time = linear(spec.freq_dim, width) + linear(width, width) + linear(width, 6 * width)
    # q, k, v and output of self- and of cross-attention, feed-forward, and six rows of modulation.
    block = 8 * linear(width, width) + linear(width, spec.ffn_dim) + linear(spec.ffn_dim, width) + 6 * width
    return ends + text + time + spec.num_layers * block
