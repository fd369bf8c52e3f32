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

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from math import prod
from pathlib import Path
from typing import Annotated, Literal

from paradit.attention.patterns import Pattern
from paradit.config.errors import InputError
from paradit.config.options import decode, decode_known
from paradit.models.defaults import Defaults
from paradit.models.folder_json import own_settings, read_index, read_json, stored_weights
from paradit.models.open_sora_plan.vae_spec import vae_spec
from paradit.models.spec import CONFIG, FIXED, Layers, ModelSpec, Positive, Size, Weights
from paradit.models.transformer_spec import TransformerSpec
from paradit.models.umt5 import UMT5Config, mt5_parameters, read_umt5
from paradit.models.unknown_weights import check_transformer
from paradit.models.vae_spec import VaeSpec

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
INPAINT = "OpenSoraInpaint_v1_3"
"""Class of the transformer that takes pictures."""
MASK_CHANNELS = 4
"""Number of channels of the mask of given frames: one for each frame that a latent frame covers."""
FULL_AT_EACH_END = 2
"""Number of layers at the beginning, and at the end, in which all tokens attend to all."""
UNBOUNDED = 2**31
"""Value of `max_positions` that stands for no limit, because rotary angles are computed when needed."""

DEFAULTS = Defaults(width=640, height=352, num_frames=93, fps=18, num_inference_steps=100, guidance_scale=7.5)
"""Values of the authors' script sample_t2v_v1_3.sh; the negative prompt is in prompts.toml."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Texts with which the authors make videos, from prompts.toml."""

    template: str
    """Text around a prompt, which takes the place of `{}`."""
    negative_prompt: str

    @classmethod
    def read(cls) -> Prompts:
        text = resources.files("paradit.models.open_sora_plan") / "prompts.toml"
        return decode(cls, tomllib.loads(text.read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Configuration of an OpenSoraT2V_v1_3 or OpenSoraInpaint_v1_3, with the published values as defaults."""

    _class_name: Literal["OpenSoraT2V_v1_3", "OpenSoraInpaint_v1_3"] = "OpenSoraT2V_v1_3"
    num_attention_heads: Size = 24
    attention_head_dim: Size = 96
    in_channels: Size = 8
    out_channels: Size = 8
    num_layers: Layers = 32
    patch_size: Size = 2
    caption_channels: Size = 4096
    interpolation_scale_t: Positive = 1.0
    interpolation_scale_h: Positive = 1.0
    interpolation_scale_w: Positive = 1.0
    sparse1d: bool = True
    sparse_n: Size = 4
    patch_size_t: Annotated[int, FIXED] = 1
    attention_bias: Annotated[bool, FIXED] = True
    activation_fn: Annotated[str, FIXED] = "gelu-approximate"
    only_cross_attention: Annotated[bool, FIXED] = False
    double_self_attention: Annotated[bool, FIXED] = False
    norm_elementwise_affine: Annotated[bool, FIXED] = False
    norm_eps: Annotated[float, FIXED] = 1e-6
    vae_scale_factor_t: Annotated[int, FIXED] = 4

    def __post_init__(self) -> None:
        if self.attention_head_dim % 6:
            raise InputError(
                "attention_head_dim must be a multiple of 6 (pairs of channels for three axes), got "
                f"{self.attention_head_dim}"
            )


@dataclass(frozen=True, kw_only=True)
class OpenSoraPlanTransformerSpec(TransformerSpec):
    """Sizes of an OpenSoraT2V_v1_3: Wan's architecture, with sparse attention in all layers except four."""

    sparsity: int
    """Number of groups of tokens in a sparse layer, which attend only within themselves; 1: no layer is
    sparse."""
    takes_frames: bool
    """Whether the transformer also reads given frames and their mask (OpenSoraInpaint_v1_3)."""

    def flops(self, tokens: int, text_tokens: int, timesteps: int = 1) -> int:
        """Count the floating-point operations of one forward pass over one video (a multiply-add is two)."""
        found = super().flops(tokens, text_tokens, timesteps)
        if not self.takes_frames:
            return found
        # A further linear map for the frames, and one for their mask.
        return found + 4 * tokens * self.width**2

    def pattern(self, layer: int) -> Pattern | None:
        """Return the groups of tokens in a layer's self-attention; None: all tokens attend to all.

        The first two and the last two layers are full. In the others, every `sparsity`-th token is in the
        same group, or every `sparsity`-th run of as many tokens, by turns.
        """
        if self.sparsity == 1 or not FULL_AT_EACH_END <= layer < self.num_layers - FULL_AT_EACH_END:
            return None
        return Pattern(self.sparsity, run=self.sparsity if layer % 2 else 1)


def read_spec(folder: Path) -> ModelSpec:
    """Return the spec (sizes and costs) of a checked folder of this model.

    `paradit.json` in the folder overrides the defaults. Raises InputError for an invalid value in any of the
    folder's files.
    """
    index, prompts = read_index(folder), Prompts.read()
    name, defaults = own_settings(folder, replace(DEFAULTS, negative_prompt=prompts.negative_prompt))
    config, vae = (folder / part / CONFIG for part in ("transformer", "vae"))
    text = read_text_encoder(folder / "text_encoder" / CONFIG)
    transformer = transformer_spec(read_json(config), str(config))
    expected = {"text_encoder": mt5_parameters(text), "transformer": transformer.num_parameters}
    stored = {part: stored_weights(folder / part) for part in ("text_encoder", "transformer", "vae")}
    check_transformer(folder / "transformer", stored["transformer"][0], transformer.num_parameters)
    spec = ModelSpec(
        name=name,
        folder=folder,
        pipeline_class=index["_class_name"],
        transformers=(transformer,),
        vae=vae_spec(read_json(vae), str(vae)),
        defaults=defaults,
        weights=tuple(
            # Weights may not be downloaded yet; the VAE's few parameters then stay unknown.
            Weights(component=part, parameters=parameters or expected.get(part, 0), file_bytes=file_bytes)
            for part, (parameters, file_bytes) in stored.items()
        ),
        text_encoder_dim=text.d_model,
        text_length=TEXT_LENGTH,
        prompt_template=prompts.template,
        takes=frozenset({"image", "last_image"} if transformer.takes_frames else ()),
        needs_image=transformer.takes_frames,
        flow=False,
        one_timestep=True,
        # The copy in bf16 and the other guidance branch's prediction; then the encoded pictures, and an input
        # that has these and the mask as further channels.
        latents_held=5 if transformer.takes_frames else 2,
        scheduler_holds=0,
    )
    scheduler = index.get("scheduler", COMPONENTS["scheduler"])[1]
    if scheduler != SCHEDULER["_class_name"]:
        raise InputError(
            f"{folder}: the scheduler of this model must be {SCHEDULER['_class_name']}, got {scheduler}"
        )
    check_together(transformer, spec.vae, text, str(folder))
    return spec


def read_text_encoder(path: Path) -> UMT5Config:
    """Read the configuration of an MT5EncoderModel. Raises InputError, also if it is of another class.

    T5 and UMT5 have weights of the same names, and could not read this model's texts.
    """
    kind = read_json(path).get("model_type", "mt5")
    if kind != "mt5":
        raise InputError(
            f"{path}: model_type must be 'mt5', got {kind!r}: the text encoder is google/mt5-xxl"
        )
    return read_umt5(path)


def check_together(
    transformer: OpenSoraPlanTransformerSpec, vae: VaeSpec, text: UMT5Config, where: str
) -> None:
    """Refuse components that do not belong together. Raises InputError.

    where: the folder that they are in, for error messages.
    """
    latents = vae.z_dim
    read = 2 * latents + MASK_CHANNELS if transformer.takes_frames else latents
    if (transformer.in_channels, transformer.out_channels) != (read, latents):
        raise InputError(
            f"{where}: with this VAE, in_channels and out_channels of the transformer must be {latents}"
        )
    if transformer.text_dim != text.d_model:
        raise InputError(
            f"{where}: caption_channels of the transformer must be {text.d_model}, the d_model of the text "
            f"encoder, got {transformer.text_dim}"
        )


def transformer_spec(config: Mapping[str, object], where: str = "") -> OpenSoraPlanTransformerSpec:
    """Return the sizes in a configuration of OpenSoraT2V_v1_3 or OpenSoraInpaint_v1_3. Raises InputError.

    where: the path of the configuration file, for error messages.
    """
    found = decode_known(TransformerConfig, config, where)
    takes_frames = found._class_name == INPAINT
    width = found.num_attention_heads * found.attention_head_dim
    spec = OpenSoraPlanTransformerSpec(
        num_attention_heads=found.num_attention_heads,
        attention_head_dim=found.attention_head_dim,
        num_layers=found.num_layers,
        ffn_dim=4 * width,
        patch_size=(found.patch_size_t, found.patch_size, found.patch_size),
        in_channels=2 * found.in_channels + MASK_CHANNELS if takes_frames else found.in_channels,
        out_channels=found.out_channels,
        text_dim=found.caption_channels,
        freq_dim=256,
        max_positions=UNBOUNDED,
        num_parameters=0,
        sparsity=found.sparse_n if found.sparse1d else 1,
        takes_frames=takes_frames,
    )
    return replace(spec, num_parameters=_count_parameters(spec))


def _count_parameters(spec: OpenSoraPlanTransformerSpec) -> int:
    width, patch = spec.width, prod(spec.patch_size)

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    ends = linear(spec.in_channels * patch, width) + linear(width, spec.out_channels * patch) + 2 * width
    if spec.takes_frames:
        # Two further patch embeddings, counted above but for their biases, and a linear map after each.
        ends += 2 * width + 2 * width**2
    text = linear(spec.text_dim, width) + linear(width, width)
    time = linear(spec.freq_dim, width) + linear(width, width) + linear(width, 6 * width)
    # q, k, v and output of self- and of cross-attention, feed-forward, and six rows of modulation.
    block = 8 * linear(width, width) + linear(width, spec.ffn_dim) + linear(spec.ffn_dim, width) + 6 * width
    return ends + text + time + spec.num_layers * block
