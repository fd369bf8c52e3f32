"""Transformers and published models with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import MT5Config, MT5EncoderModel, PreTrainedTokenizerFast

from paradit.models.hunyuan_video.spec import transformer_spec as hunyuan_video_spec
from paradit.models.open_sora_plan.adapter import OpenSoraPlanPipeline
from paradit.models.open_sora_plan.module import OpenSoraT2V_v1_3
from paradit.models.open_sora_plan.spec import SCHEDULER
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.published import published_spec
from paradit.models.spec import ModelSpec
from paradit.models.wan.spec import transformer_spec as wan_spec

TEXT_DIM = 64


def random_open_sora_plan(
    sizes: tuple[int, int, int], latent_shape: tuple[int, int, int], text_tokens: int
) -> tuple[OpenSoraT2V_v1_3, Tensor, list[tuple[Tensor, Tensor]]]:
    """Return an Open-Sora-Plan transformer, latents [1, 8, F, h, w], and two prompts with their masks.

    sizes: heads, head dim, layers.
    """
    heads, head_dim, layers = sizes
    torch.manual_seed(0)
    module = OpenSoraT2V_v1_3(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        caption_channels=TEXT_DIM,
    )
    prompts = [(torch.randn(1, text_tokens, TEXT_DIM), torch.ones(1, text_tokens)) for _ in range(2)]
    return module.eval(), torch.randn(1, 8, *latent_shape), prompts


def random_wan(
    sizes: tuple[int, int, int, int], latent_shape: tuple[int, int, int], text_tokens: int
) -> tuple[WanTransformer3DModel, Tensor, list[Tensor]]:
    """Return a Wan transformer, latents [1, 16, F, h, w], and two prompt embeddings [1, T, text_dim].

    sizes: heads, head dim, layers, feed-forward.
    """
    heads, head_dim, layers, ffn = sizes
    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        ffn_dim=ffn,
        text_dim=TEXT_DIM,
        rope_max_seq_len=64,
    )
    latents = torch.randn(1, 16, *latent_shape)
    return module.eval(), latents, [torch.randn(1, text_tokens, TEXT_DIM) for _ in range(2)]


def random_hunyuan_video(
    sizes: tuple[int, int, int, int], latent_shape: tuple[int, int, int], text_tokens: int
) -> tuple[HunyuanVideoTransformer3DModel, Tensor, tuple[Tensor, ...]]:
    """Return a HunyuanVideo transformer, latents [1, 16, F, h, w], and a prompt's parts for its forward.

    sizes: heads, head dim, double blocks, single blocks.
    """
    heads, head_dim, double, single = sizes
    torch.manual_seed(0)
    module = HunyuanVideoTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=double,
        num_single_layers=single,
        num_refiner_layers=1,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        rope_axes_dim=(head_dim // 4, head_dim * 3 // 8, head_dim * 3 // 8),
    )
    prompt = (
        torch.randn(1, text_tokens, TEXT_DIM),
        torch.ones(1, text_tokens),
        torch.randn(1, TEXT_DIM),
        torch.tensor([6000.0]),
    )
    return module.eval(), torch.randn(1, 16, *latent_shape), prompt


def save_open_sora_plan(folder: Path, *, heads: int, layers: int, vae_channels: int, text: int) -> None:
    """Save a whole Open-Sora-Plan model with random weights and 48 channels a head.

    vae_channels: base channels of the WF-VAE, a multiple of 4; 128 in the published one. text: width of its
    mT5.
    """
    torch.manual_seed(0)
    alphabet = ["<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(
        BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[], unk_token="<unk>")
    )
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    config = MT5Config(vocab_size=len(alphabet), d_model=text, d_kv=64, d_ff=4 * text, num_layers=8,
                       num_heads=text // 64, is_encoder_decoder=False)  # fmt: skip
    OpenSoraPlanPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", eos_token="</s>"),
        text_encoder=MT5EncoderModel(config).eval(),
        transformer=OpenSoraT2V_v1_3(
            num_attention_heads=heads, attention_head_dim=48, num_layers=layers, caption_channels=text
        ),
        vae=WFVAEModel(
            base_channels=vae_channels,
            encoder_energy_flow_hidden_size=vae_channels // 2,
            decoder_energy_flow_hidden_size=vae_channels,
        ),
        scheduler=diffusers.EulerAncestralDiscreteScheduler.from_config(SCHEDULER),
    ).save_pretrained(folder)


def random_pipeline(
    name: str, layers: dict[str, int], dtype: torch.dtype, device: torch.device
) -> tuple[Any, ModelSpec]:
    """Return a published model's diffusers pipeline with random weights, and its spec.

    It has no text encoder, its VAE is in fp32, and of two experts it has one. layers: settings of the
    transformer's configuration that are replaced, such as a smaller number of layers.
    """
    configs = json.loads((resources.files("paradit.models") / "published.json").read_text())[name]
    index = configs["model_index"]
    wan = index["_class_name"].startswith("Wan")
    transformer_class, vae_class = (
        (diffusers.WanTransformer3DModel, diffusers.AutoencoderKLWan)
        if wan
        else (diffusers.HunyuanVideoTransformer3DModel, diffusers.AutoencoderKLHunyuanVideo)
    )
    torch.manual_seed(0)
    with device:
        transformer = transformer_class(**(configs["transformer"] | layers)).eval()
        vae = vae_class(**configs["vae"], **_normalisation(configs["vae"].get("z_dim"))).eval()
    in_fp32 = transformer._keep_in_fp32_modules or ()
    for part, parameter in transformer.named_parameters():
        parameter.requires_grad_(False)
        if not any(word in in_fp32 for word in part.split(".")):
            parameter.data = parameter.data.to(dtype)
    parts: dict[str, Any] = {"transformer": transformer, "vae": vae.requires_grad_(False)}
    read = wan_spec if wan else hunyuan_video_spec
    counted = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    published = published_spec(name)
    spec = replace(
        published,
        transformers=(read(dict(transformer.config)),),
        boundary_ratio=None,
        weights=tuple(
            replace(weights, parameters=counted[weights.component])
            for weights in published.weights
            if weights.component in counted
        ),
    )
    parts |= {"tokenizer": None, "text_encoder": None}
    if wan:
        parts["scheduler"] = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        pipeline_class = getattr(diffusers, index["_class_name"])
        return pipeline_class(**parts, expand_timesteps=spec.expand_timesteps), spec
    parts |= {"tokenizer_2": None, "text_encoder_2": None}
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.HunyuanVideoPipeline(**parts), spec


def _normalisation(z_dim: int | None) -> dict[str, list[float]]:
    """Return neutral means and deviations of latents, if the VAE's channel count is not the default."""
    return {} if z_dim is None else {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim}
