"""HunyuanVideo: its spec, and a generation compared with HunyuanVideoPipeline's, on one and several ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

import paradit
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.options import decode_known
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.folder import find_model
from paradit.models.hunyuan_video.spec import (
    ClipSizes,
    LlamaSizes,
    clip_parameters,
    llama_parameters,
    transformer_spec,
)
from paradit.models.spec import read_spec
from paradit.models.warnings import warnings_for
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.testing import run_world
from paradit.text_to_video import text_to_video
from tiny import POOLED_DIM, TEXT_DIM, decoded, hunyuan_transformer, save_hunyuan_folder

SIZE: dict[str, Any] = {"width": 48, "height": 80, "num_frames": 9, "num_inference_steps": 3}
"""Size of a video with 45 tokens."""
PROMPT, SEED = "a red circle", 11
FULL_PROMPT = "abcdefghij " * 30
"""Prompt that fills all 256 text tokens, so that there is no padding."""

CONFIGS = {
    "HunyuanVideo": {},
    "other": {
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "rope_axes_dim": (8, 12, 12),
        "num_layers": 2,
        "num_single_layers": 3,
        "num_refiner_layers": 3,
        "mlp_ratio": 3.5,
        "patch_size_t": 2,
        "in_channels": 8,
        "out_channels": 4,
        "guidance_embeds": False,
        "text_embed_dim": 40,
        "pooled_projection_dim": 12,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hunyuan_folder(tmp_path_factory.mktemp("models") / "tiny-hunyuan")


def pipeline_of(folder: Path, dtype: torch.dtype = torch.float32) -> HunyuanVideoPipeline:
    pipe = HunyuanVideoPipeline.from_pretrained(folder, dtype={"vae": torch.float32, "default": dtype})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_the_pipeline(
    pipe: HunyuanVideoPipeline, prompt: str = PROMPT, output_type: str = "latent", **more: Any
) -> Any:
    generator = torch.Generator("cpu").manual_seed(SEED)
    return pipe(prompt, generator=generator, output_type=output_type, **(SIZE | more)).frames


def by_us(folder: Path, prompt: str = PROMPT, dtype: str = "fp32", **more: Any) -> Any:
    spec = read_spec(folder)
    request = resolve(Request(prompt=prompt, seed=SEED, **(SIZE | more)), spec)
    return text_to_video(load(spec, dtype), request, Progress())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_parameter_count_is_the_class_s(config: Any) -> None:
    with torch.device("meta"):
        model = HunyuanVideoTransformer3DModel(**config)
    assert transformer_spec(config).num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("guidance_embeds", [True, False])
@torch.no_grad()
def test_flops_are_those_counted(guidance_embeds: bool) -> None:
    model = hunyuan_transformer(guidance_embeds=guidance_embeds)
    text, pooled = torch.randn(1, 20, TEXT_DIM), torch.randn(1, POOLED_DIM)
    # The counter does not know the fused CPU kernel; the math backend consists of matrix products.
    math_kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, math_kernel:
        guidance = torch.tensor([6000.0])
        model(torch.randn(1, 16, 3, 8, 8), torch.tensor([3.0]), text, torch.ones(1, 20), pooled, guidance)
    spec = transformer_spec(model.config)
    assert counter.get_total_flops() == spec.flops(48, text_tokens=20) + spec.context_flops(20)


# HunyuanVideo's text encoders, of llava-llama-3-8b and clip-vit-large-patch14; and the defaults.
@pytest.mark.parametrize(
    ("llama", "clip"),
    [
        (
            {"vocab_size": 128320, "intermediate_size": 14336, "num_key_value_heads": 8},
            {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        ),
        ({}, {}),
    ],
)
def test_text_encoder_counts_are_the_classes(llama: Any, clip: Any) -> None:
    with torch.device("meta"):
        models = LlamaModel(LlamaConfig(**llama)), CLIPTextModel(CLIPTextConfig(**clip))
    counts = tuple(sum(p.numel() for p in model.parameters()) for model in models)
    sizes = llama_parameters(LlamaSizes(**llama)), clip_parameters(decode_known(ClipSizes, clip))
    assert sizes == counts


def test_reads_a_folder(folder: Path) -> None:
    assert find_model(str(folder)) == folder
    spec = read_spec(folder)
    assert spec.pipeline_class == "HunyuanVideoPipeline"
    defaults = spec.defaults
    assert (defaults.width, defaults.height, defaults.num_frames, defaults.fps) == (1280, 720, 129, 24)
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (50, 6.0)
    assert spec.size_multiple == 16
    assert spec.vae.latent_shape(129, 720, 1280) == (16, 33, 90, 160)
    assert spec.tokens(129, 720, 1280) == 33 * 45 * 80
    # Guidance is an input of the transformer.
    assert resolve(Request(prompt="any", guidance_scale=6.0), spec).branches(spec) == (1,)
    by_component = {weights.component: weights.parameters for weights in spec.weights}
    assert by_component["transformer"] == spec.transformers[0].num_parameters
    parts = spec.memory_bytes(129, 720, 1280, 2)
    assert parts["peak"] <= sum(value for part, value in parts.items() if part != "peak")


def test_warns_of_a_negative_prompt(folder: Path) -> None:
    spec = read_spec(folder)
    asked = Request(prompt=PROMPT, **SIZE)
    assert warnings_for(resolve(asked, spec), spec) == []
    (warning,) = warnings_for(resolve(replace(asked, negative_prompt="blurry"), spec), spec)
    assert "negative_prompt has no effect" in warning


def test_counts_without_weights(tmp_path: Path) -> None:
    folder = save_hunyuan_folder(tmp_path)
    there = {w.component: w.parameters for w in read_spec(folder).weights}
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    assert {w.component: w.parameters for w in read_spec(folder).weights} == there | {"vae": 0}


def test_refuses_an_incomplete_folder(tmp_path: Path) -> None:
    folder = save_hunyuan_folder(tmp_path / "whole")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"text_encoder_2"', '"other"'))
    with pytest.raises(InputError, match="names no text_encoder_2"):
        find_model(str(folder))


def test_equals_the_pipeline(folder: Path) -> None:
    video = by_us(folder, guidance_scale=4.0)
    assert video.latents.dtype == torch.float32
    expected = by_the_pipeline(pipeline_of(folder), guidance_scale=4.0)
    # The pipeline masks the text's padding, which is cut off here. Measured: 6e-7, of values up to 4.
    torch.testing.assert_close(video.latents, expected, rtol=0, atol=5e-6)
    assert not torch.allclose(by_us(folder, guidance_scale=1.0).latents, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_equals_the_pipeline_bit_for_bit_without_padding(guidance_embeds: bool, tmp_path: Path) -> None:
    folder = save_hunyuan_folder(tmp_path, heads=3, guidance_embeds=guidance_embeds)
    video, pipe = by_us(folder, FULL_PROMPT), pipeline_of(folder)
    assert torch.equal(video.latents, by_the_pipeline(pipe, FULL_PROMPT))
    frames = (by_the_pipeline(pipe, FULL_PROMPT, output_type="np")[0] * 255).round().astype("uint8")
    assert np.array_equal(np.stack(list(video.frames())), frames)


class InFp32(FlowMatchEulerDiscreteScheduler):
    def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().step(model_output.float(), *args, **kwargs)


def test_keeps_the_latents_in_fp32(folder: Path) -> None:
    """The pipeline's scheduler rounds latents to the prediction's dtype, and timesteps too; ours does not."""
    latents = by_us(folder, FULL_PROMPT, dtype="bf16").latents
    assert latents.dtype == torch.float32
    pipe = pipeline_of(folder, torch.bfloat16)
    assert by_the_pipeline(pipe, FULL_PROMPT).dtype == torch.bfloat16
    pipe.scheduler = InFp32.from_config(pipe.scheduler.config)
    assert torch.equal(latents, by_the_pipeline(pipe, FULL_PROMPT))


@pytest.mark.parametrize(
    "shape", [(1, 4, 4), (4, 4, 6), (5, 4, 4), (7, 6, 4), (8, 4, 4), (9, 4, 4), (5, 34, 36)]
)
@torch.no_grad()
def test_decode_streams_and_equals_the_vae(folder: Path, shape: tuple[int, ...]) -> None:
    """The VAE decodes by groups of frames, and by tiles beyond 256 pixels."""
    model: Any = load(read_spec(folder), "fp32")
    pipe, latents = model._pipeline, torch.randn(1, 16, *shape)
    pipe.vae.enable_tiling()
    parts = list(decoded(model, latents, tile=256))
    assert [len(part) for part in parts] == [1] + [4] * (shape[0] - 1)
    whole = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    whole = pipe.video_processor.postprocess_video(whole, output_type="np")[0]
    assert np.array_equal(np.concatenate(parts), (whole * 255).round().astype("uint8"))


def test_generate(folder: Path) -> None:
    made = paradit.generate(PROMPT, model=str(folder), **SIZE)
    assert made.frames.shape == (9, 80, 48, 3)
    assert made.fps == 24
    assert made.request.guidance_scale == 6.0


def latents_on_ranks(world: World, folder: Path, placements: list[Placement]) -> list[Tensor]:
    spec = read_spec(folder)
    model, request = load(spec, "fp32"), resolve(Request(prompt=PROMPT, seed=SEED, **SIZE), spec)
    predictors = [sequence_parallel(world, placement, model.experts[0].num_heads) for placement in placements]
    return [text_to_video(model, request, Progress(), predictor).latents for predictor in predictors]


@pytest.mark.parametrize(("heads", "num_ranks"), [(2, 2), (3, 2), (2, 3)])
def test_several_ranks_give_the_same_latents(heads: int, num_ranks: int, tmp_path: Path) -> None:
    """The 45 video tokens and 17 text tokens divide unevenly, for any form of attention."""
    folder = save_hunyuan_folder(tmp_path, heads=heads)
    names = ("ulysses", "pipesp", "pipesp-paper", "ring", "auto")
    placements = [Placement(ranks=num_ranks, attention=name) for name in names]
    expected = by_us(folder).latents
    for by_placement in run_world(latents_on_ranks, num_ranks, folder, placements, timeout=240):
        for name, latents in zip(names, by_placement, strict=True):
            difference = float((latents - expected).abs().max())
            assert difference <= 1e-5, (name, difference)


def before_during_after(_: World, folder: Path) -> list[Tensor]:
    pipe = pipeline_of(folder)
    alone = by_the_pipeline(pipe)
    undo = paradit.parallelize(pipe)
    assert "forward" in vars(pipe.transformer)
    during = by_the_pipeline(pipe)
    # A second branch, which the pipeline computes too, has a text of another length.
    guided = by_the_pipeline(pipe, negative_prompt="blurry", true_cfg_scale=2.0)
    undo()
    assert "forward" not in vars(pipe.transformer)
    again = by_the_pipeline(pipe)
    guided_alone = by_the_pipeline(pipe, negative_prompt="blurry", true_cfg_scale=2.0)
    return [alone, during, again, guided, guided_alone]


def test_parallelize_gives_the_same_latents(folder: Path) -> None:
    by_rank = run_world(before_during_after, 3, folder, timeout=240)
    for alone, during, again, guided, guided_alone in by_rank:
        torch.testing.assert_close(during, alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(guided, guided_alone, rtol=0, atol=1e-5)
        assert torch.equal(again, alone)


def test_what_the_text_encoders_do_not_read_of_a_prompt(folder: Path) -> None:
    model = load(read_spec(folder), "fp32", stages=("encode",))
    assert model.left_out("a red circle") == {}
    assert model.left_out("ab " * 30) == {"CLIP": (77, "b ab ab ab ab")}
    words = " ".join(["ab"] * 130) + " cd"
    found = model.left_out(words)
    assert found["CLIP"][0] == 77
    assert found["Llama"][0] == 256
    assert "c ##d" in found["Llama"][1]
