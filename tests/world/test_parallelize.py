"""`paradit.parallelize`, which runs the user's own pipeline on several ranks, and its undo."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AllegroTransformer3DModel,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVideoToVideoPipeline,
)
from PIL import Image
from torch import Tensor

import paradit
from paradit.config.errors import InputError
from paradit.distributed.world import World
from paradit.testing import run_world
from tiny import FROM_IMAGE, VARIANTS, picture_parts, save_folder, text_encoder, tokenizer, transformer, vae


def generate(pipe: WanPipeline, seed: int = 4) -> Tensor:
    return pipe(
        "a red circle",
        height=48,
        width=48,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
    ).frames


def load(folder: Path) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def before_during_after(world: World, folder: Path) -> tuple[Tensor, Tensor, Tensor, int]:
    pipe = load(folder)
    alone = generate(pipe)
    undo = paradit.parallelize(pipe)
    assert "forward" in vars(pipe.transformer)
    together = generate(pipe)
    undo()
    assert "forward" not in vars(pipe.transformer)
    return alone, together, generate(pipe), world.rank


@pytest.mark.parametrize("variant", VARIANTS)
def test_gives_the_same_latents(variant: str, tmp_path: Path) -> None:
    for alone, together, again, _ in run_world(before_during_after, 3, save_folder(variant, tmp_path)):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        assert torch.equal(again, alone)


def image_to_video(variant: str) -> WanImageToVideoPipeline:
    two = variant == "i2v_a14b"
    return WanImageToVideoPipeline(
        **like_wan(variant),
        **picture_parts(variant if variant in FROM_IMAGE else "i2v_a14b"),
        transformer=transformer(variant),
        transformer_2=transformer(variant, seed=1) if two else None,
        boundary_ratio=0.9 if two else None,
        expand_timesteps=variant == "wan22_ti2v",
    )


def like_wan(variant: str = "wan21") -> dict[str, object]:
    return {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder(),
        "vae": vae(variant),
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    }


def from_pictures(pipe: DiffusionPipeline, **pictures: object) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(4)
    asked = {"height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 3.0}
    return pipe(prompt="a red circle", generator=generator, output_type="latent", **asked, **pictures).frames


def with_other_pipelines(world: World) -> list[tuple[Tensor, Tensor | None]]:
    """Return the latents of each pipeline on these ranks and, on the first one, those of one process."""
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    first = {"image": picture, "num_frames": 9}
    pipes: list[tuple[Any, dict[str, Any]]] = [
        (image_to_video("i2v"), first),
        (image_to_video("flf2v"), {**first, "last_image": picture}),
        (image_to_video("i2v_a14b"), first),
        (image_to_video("wan22_ti2v"), first),
        (WanVideoToVideoPipeline(**like_wan(), transformer=transformer()), {"video": [picture] * 9}),
    ]
    made = []
    for pipe, pictures in pipes:
        alone = from_pictures(pipe, **pictures) if world.rank == 0 else None
        paradit.parallelize(pipe)
        made.append((from_pictures(pipe, **pictures), alone))
    return made


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_takes_every_pipeline_whose_transformer_is_known(ranks: int) -> None:
    first, *others = run_world(with_other_pipelines, ranks, timeout=240)
    for (together, alone), *elsewhere in zip(first, *others, strict=True):
        assert alone is not None and alone.shape[1] in (16, 48) and alone.std() > 0.1
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
        assert all(torch.equal(other, together) for other, _ in elsewhere)


def with_a_short_text(_: World) -> None:
    pipe = image_to_video("i2v")
    paradit.parallelize(pipe)
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(InputError, match=r"max_sequence_length must be 512 .* got 256"):
        from_pictures(pipe, image=picture, num_frames=5, max_sequence_length=256)


def test_refuses_a_text_that_diffusers_would_take_for_a_picture() -> None:
    run_world(with_a_short_text, 1)


def with_other_noise(world: World, folder: Path) -> None:
    pipe = load(folder)
    paradit.parallelize(pipe)
    with pytest.raises(RuntimeError, match="rank 2: the noise differs from that of rank 0"):
        generate(pipe, seed=5 if world.rank == 2 else 4)


def test_names_the_rank_whose_noise_differs(tmp_path: Path) -> None:
    run_world(with_other_noise, 3, save_folder("wan21", tmp_path))


def test_needs_a_process_group(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="init_process_group"):
        paradit.parallelize(load(save_folder("wan21", tmp_path)))


def test_refuses_other_pipelines() -> None:
    with pytest.raises(
        InputError,
        match=r"WanTransformer3DModel .* HunyuanVideoTransformer3DModel, got Diff",
    ):
        paradit.parallelize(DiffusionPipeline())


def test_refuses_other_transformers_by_name() -> None:
    pipe = DiffusionPipeline()
    pipe.transformer = AllegroTransformer3DModel(num_layers=1, num_attention_heads=1, attention_head_dim=24)
    with pytest.raises(InputError, match="got DiffusionPipeline with AllegroTransformer3DModel"):
        paradit.parallelize(pipe)
