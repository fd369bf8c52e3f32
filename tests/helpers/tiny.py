"""Tiny random models of every family, made with the real classes; small enough for a test."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    SchedulerMixin,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from paradit.attention.local_attention import local
from paradit.distributed.agreement import Agreement
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.families import loader
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.protocol import Frames, SplitTransformer, Tokens, VideoModel
from paradit.models.spec import read_spec
from paradit.parallel.run_blocks import run, through_blocks
from paradit.stages.decode import pictures

VARIANTS = ("wan21", "wan22_a14b", "wan22_ti2v")
FROM_IMAGE = ("i2v", "flf2v", "i2v_a14b")
"""Variants whose folders are of a WanImageToVideoPipeline."""

TEXT_DIM, POOLED_DIM = 32, 20

M = TypeVar("M", bound=torch.nn.Module)


def transformer(
    variant: str = "wan21", seed: int = 0, heads: int = 2, layers: int = 2, ffn_dim: int = 96
) -> WanTransformer3DModel:
    """Return a Wan transformer of a variant with all parameters random, norms and tables too."""
    reads: dict[str, Any] = {"in_channels": 36, "image_dim": 24, "added_kv_proj_dim": heads * 32}
    extras: dict[str, dict[str, Any]] = {
        "wan22_ti2v": {"in_channels": 48, "out_channels": 48},
        "i2v": reads,
        "flf2v": {**reads, "pos_embed_seq_len": 10},
        "i2v_a14b": {"in_channels": 36},
    }
    config: dict[str, Any] = {
        "num_attention_heads": heads,
        "attention_head_dim": 32,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": ffn_dim,
        "num_layers": layers,
        "rope_max_seq_len": 64,
    }
    torch.manual_seed(seed)
    return all_random(WanTransformer3DModel(**(config | extras.get(variant, {}))))


def all_random(model: M) -> M:
    """Add noise to all parameters, because norm weights of one and zero biases would hide mistakes."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def in_bf16(model: Any, folder: Path) -> Any:
    """Return the model as `from_pretrained` loads it in bf16, with some modules kept in fp32."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.bfloat16).eval().requires_grad_(False)


def vae(variant: str) -> AutoencoderKLWan:
    config = {"base_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    if variant == "wan22_ti2v":
        config |= {
            "z_dim": 48,
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
            "latents_mean": [0.01 * i for i in range(48)],
            "latents_std": [1 + 0.01 * i for i in range(48)],
        }
    torch.manual_seed(7)
    return AutoencoderKLWan(**config).eval().requires_grad_(False)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, made without any file."""
    specials = ["<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    model = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=259,
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    torch.manual_seed(3)
    return UMT5EncoderModel(config).eval().requires_grad_(False)


def image_encoder() -> CLIPVisionModel:
    """Return a picture encoder whose pictures have five tokens of 24 values."""
    config = CLIPVisionConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=2,
                              num_attention_heads=2, image_size=28, patch_size=14)  # fmt: skip
    torch.manual_seed(5)
    return CLIPVisionModel(config).eval().requires_grad_(False)


def picture_parts(variant: str) -> dict[str, Any]:
    """Return the components of a WanImageToVideoPipeline that other pipelines do not have."""
    if variant == "i2v_a14b":
        return {"image_encoder": None, "image_processor": None}
    return {
        "image_encoder": image_encoder(),
        "image_processor": CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28),
    }


def drawing_scheduler() -> DPMSolverMultistepScheduler:
    """Return a scheduler that draws noise in every step, and remembers the previous step."""
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type="sde-dpmsolver++",
    )


def save_folder(
    variant: str,
    folder: Path,
    heads: int = 2,
    layers: int = 2,
    ffn_dim: int = 96,
    *,
    scheduler: SchedulerMixin | None = None,
    **settings: object,
) -> Path:
    """Save a whole model of a Wan variant in diffusers' format; `settings` go into its paradit.json."""
    two, boundary = variant.endswith("a14b"), 0.9 if variant in FROM_IMAGE else 0.875
    seeds = {"transformer": 0, **({"transformer_2": 1} if two else {})}
    experts = {name: transformer(variant, seed, heads, layers, ffn_dim) for name, seed in seeds.items()}
    (WanImageToVideoPipeline if variant in FROM_IMAGE else WanPipeline)(
        tokenizer=tokenizer(),
        text_encoder=text_encoder(),
        vae=vae(variant),
        scheduler=scheduler
        or UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        boundary_ratio=boundary if two else None,
        expand_timesteps=variant == "wan22_ti2v",
        **experts,
        **(picture_parts(variant) if variant in FROM_IMAGE else {}),
    ).save_pretrained(folder)
    if settings:
        (folder / "paradit.json").write_text(json.dumps(settings))
    return folder


def hunyuan_transformer(heads: int = 2, guidance_embeds: bool = True) -> HunyuanVideoTransformer3DModel:
    """Return a HunyuanVideo transformer with two double and two single blocks, and all parameters random."""
    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=32,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=3.0,
        guidance_embeds=guidance_embeds,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        rope_axes_dim=(8, 12, 12),
    )
    return all_random(model)


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(7)
    config = {"block_out_channels": (4, 4, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return AutoencoderKLHunyuanVideo(**config).eval().requires_grad_(False)


def wf_vae() -> WFVAEModel:
    torch.manual_seed(7)
    flow = {"encoder_energy_flow_hidden_size": 4, "decoder_energy_flow_hidden_size": 8}
    model = WFVAEModel(base_channels=8, **flow).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return model


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which each word of the pipeline's own template is one token.

    So the template has about its real length in tokens.
    """
    words = sorted(
        set(re.findall(r"\w+|[^\w\s]+", str(DEFAULT_PROMPT_TEMPLATE["template"]).replace("{}", "")))
    )
    letters = [chr(code) for code in range(33, 127)]
    tokens = dict.fromkeys(["<pad>", "<unk>", *words, *letters, *(f"##{letter}" for letter in letters)])
    model = Tokenizer(WordPiece(vocab={token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", unk_token="<unk>")


def save_hunyuan_folder(
    folder: Path,
    heads: int = 2,
    guidance_embeds: bool = True,
    scheduler: SchedulerMixin | None = None,
    **settings: object,
) -> Path:
    """Save a whole HunyuanVideo model in diffusers' format; `settings` go into its paradit.json."""
    llama, clip = llama_tokenizer(), tokenizer()
    torch.manual_seed(3)
    text_encoder = LlamaModel(
        LlamaConfig(
            vocab_size=len(llama),
            hidden_size=TEXT_DIM,
            intermediate_size=48,
            num_hidden_layers=3,  # the output of the last two is not read
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    text_encoder_2 = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=POOLED_DIM,
            intermediate_size=40,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=clip.eos_token_id,
        )
    )
    HunyuanVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=llama,
        transformer=hunyuan_transformer(heads, guidance_embeds),
        vae=hunyuan_vae(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text_encoder_2,
        tokenizer_2=clip,
    ).save_pretrained(folder)
    if settings:
        (folder / "paradit.json").write_text(json.dumps(settings))
    return folder


def load_on_cpu(folder: Path, dtype: torch.dtype = torch.float32, *, layers: bool = True) -> VideoModel:
    """Load a model onto the CPU, with its transformers' layers or without them."""
    spec = read_spec(folder)
    model: VideoModel = loader(spec.pipeline_class)(spec, dtype, torch.device("cpu"), layers=layers)
    return model


def decoded(model: VideoModel, latents: Tensor | LatentBlocks, tile: int | None = None) -> Iterator[Frames]:
    """Yield a video's frames, decoded latent frame by latent frame, in tiles of `tile` pixels a side."""
    vae = model.spec.vae
    height, width = (size * vae.spatial_compression for size in latents.shape[3:])
    decoder = model.decoder(latents)
    return decoder.frames(pictures(decoder, vae.grid(height, width, tile), Agreement(None, model.device)))


def forward(cut: SplitTransformer[Any, Any, Any], tokens: Tokens) -> Tensor:
    """Return each token's part of the prediction, [B, S, patch values], computed in this process."""
    return cut.head(run(through_blocks(cut.blocks, tokens, local())))


def latents_of(model: Any, frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, model.spec.vae.z_dim, frames, height, width, generator=generator)
