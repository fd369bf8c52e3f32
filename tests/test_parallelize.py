"""`paradit.parallelize`: the user's own pipeline on several ranks, and back again."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from torch import Tensor

import paradit
from paradit.config.errors import InputError
from paradit.distributed.world import World
from paradit.testing import run_world
from tiny import VARIANTS, save_folder


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
        InputError, match="takes a WanPipeline or a HunyuanVideoPipeline, got DiffusionPipeline"
    ):
        paradit.parallelize(DiffusionPipeline())
