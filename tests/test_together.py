"""Final latents on several gloo ranks equal those in one process, for shapes that divide by nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from paradit.distributed.mesh import Mesh
from paradit.distributed.world import World
from paradit.models.protocol import VideoModel
from paradit.models.registry import loader
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.requests import Request, resolve
from paradit.sampling.full_sequence import denoise
from paradit.sampling.team import Team
from paradit.sampling.together import Together
from paradit.testing import run_world
from paradit.text_to_video import load, text_to_video
from tiny import VARIANTS, save_folder

STEPS = 3


def final_latents(folder: Path, size: tuple[int, int, int], guided: bool, team: Team | None) -> Tensor:
    spec = read_spec(folder)
    model: VideoModel = loader(spec.pipeline_class)(spec, torch.float32, torch.device("cpu"))
    prompts = ["a red circle", "blurry"] if guided else ["a red circle"]
    return denoise(
        model,
        model.prepare_latents(*size, seed=3),
        tuple(model.encode_prompt(prompt) for prompt in prompts),
        num_inference_steps=STEPS,
        guidance_scales=(3.0,) * len(spec.transformers),
        progress=Progress(),
        team=team,
    )


def on_ranks(world: World, folder: Path, size: tuple[int, int, int], guided: bool, cfg_degree: int) -> Tensor:
    return final_latents(folder, size, guided, Together(Mesh(world, cfg_degree)))


def check(folder: Path, size: tuple[int, int, int], guided: bool, cfg_degree: int, num_ranks: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a rank has
    expected = final_latents(folder, size, guided, None)
    torch.set_num_threads(threads)
    for latents in run_world(on_ranks, num_ranks, folder, size, guided, cfg_degree):
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_wan_on_three_ranks(variant: str, tmp_path: Path) -> None:
    check(save_folder(variant, tmp_path), (9, 64, 96), guided=True, cfg_degree=1, num_ranks=3)


@pytest.mark.parametrize(
    ("heads", "num_ranks", "size"),
    [
        (12, 5, (5, 64, 96)),
        (3, 8, (5, 64, 96)),
        (2, 2, (9, 48, 48)),  # 27 tokens
    ],
)
def test_what_does_not_divide(heads: int, num_ranks: int, size: tuple[int, int, int], tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path, heads=heads)
    check(folder, size, guided=True, cfg_degree=1, num_ranks=num_ranks)


def with_another_seed(world: World, folder: Path) -> None:
    spec = read_spec(folder)
    seed = 8 if world.rank == 1 else 7
    request = resolve(Request(prompt="a red circle", width=32, height=32, num_frames=5, seed=seed), spec)
    with pytest.raises(RuntimeError, match="rank 1: what is asked for differs from that of rank 0"):
        text_to_video(load(spec), request, Progress(), Together(Mesh(world)))


def test_a_rank_that_is_asked_for_something_else_is_named(tmp_path: Path) -> None:
    run_world(with_another_seed, 3, save_folder("wan21", tmp_path))


def with_other_weights(world: World, folders: list[Path]) -> None:
    spec = read_spec(folders[world.rank])
    wanted = Request(
        prompt="a red circle", width=32, height=32, num_frames=5, num_inference_steps=2, guidance_scale=3.0
    )
    request = resolve(wanted, spec)
    with pytest.raises(RuntimeError, match="rank 1: the model differs from that of rank 0"):
        text_to_video(load(spec), request, Progress(), Together(Mesh(world)))


def test_a_rank_with_other_weights_is_named(tmp_path: Path) -> None:
    run_world(with_other_weights, 2, [save_folder(v, tmp_path / v) for v in ("wan21", "wan22_a14b")])


@pytest.mark.parametrize(("guided", "cfg_degree", "num_ranks"), [(True, 2, 4), (True, 2, 2), (False, 1, 2)])
def test_guidance_branches(guided: bool, cfg_degree: int, num_ranks: int, tmp_path: Path) -> None:
    check(save_folder("wan21", tmp_path), (9, 48, 48), guided, cfg_degree, num_ranks)
