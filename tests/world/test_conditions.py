"""Videos from pictures on several ranks: equal to one process, whoever encodes the pictures."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.spec import read_spec
from paradit.testing import run_world
from tiny import save_folder
from video_jobs import Kept, placement

BLOCKS = {"method": "dualparal", "block_frames": 2, "context_frames": 1}
CLIPS = {**BLOCKS, "method": "windowed"}
FRAMES = {**BLOCKS, "method": "fifo"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    size = {"width": 64, "height": 32, "num_frames": 9, "num_inference_steps": 3}
    return {name: save_folder(name, folder / name, **size) for name in ("i2v", "wan22_ti2v")}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)).save(path)
    return path


def job(model: Path, folder: Path, number: int, **fields: Any) -> Job:
    request = resolve(Request.of(prompt="a red circle", seed=number, **fields), read_spec(model))
    latents = folder / f"{number}.safetensors"
    return Job(request=request, output=str(folder / f"{number}.mp4"), latents=latents, index=number, count=3)


def on_ranks(
    world: World | None, model: Path, jobs: list[Job], where: tuple[Any, ...], **more: Any
) -> list[tuple[str, Any]]:
    ranks, groups, fields = where
    report = Kept()
    jobs[0].latents.parent.mkdir(parents=True, exist_ok=True)  # type: ignore[union-attr]
    make_videos(
        jobs,
        read_spec(model),
        placement(ranks, groups, **fields),
        report,
        overwrite=False,
        world=world if ranks > 1 else None,
        **more,
    )
    return report.told


def latents_of(jobs: list[Job]) -> list[Tensor]:
    return [load_file(str(job.latents))["latents"] for job in jobs]


@pytest.mark.parametrize(
    "case",
    [
        ("i2v", {}, [(2, "denoise=0 decode=1", {}), (3, "denoise=0-1 decode=2", {})]),
        ("i2v", BLOCKS, [(2, "", {"pipeline_degree": 2}), (3, "denoise=0-1 decode=2", {})]),
        ("wan22_ti2v", {}, [(2, "", {"attention": "ulysses"}), (3, "denoise=0 decode=1-2 encode=0", {})]),
        ("wan22_ti2v", BLOCKS, [(2, "", {"pipeline_degree": 1}), (3, "denoise=0-1 decode=2", {})]),
        ("wan22_ti2v", CLIPS, [(2, "", {})]),
        ("wan22_ti2v", FRAMES, [(2, "denoise=0 decode=1", {})]),
    ],
)
def test_equal_to_one_process(
    models: dict[str, Path], picture: Path, tmp_path: Path, case: tuple[str, dict[str, Any], list[Any]]
) -> None:
    name, method, wheres = case
    model = models[name]

    def jobs(folder: Path) -> list[Job]:
        # If the model takes texts alone, the second request is one.
        pictures = [str(picture), None if name == "wan22_ti2v" else str(picture), str(picture)]
        return [job(model, folder, number, image=path, **method) for number, path in enumerate(pictures)]

    alone = jobs(tmp_path / "alone")
    on_ranks(None, model, alone, (1, "", {}))
    expected = latents_of(alone)
    assert not torch.equal(expected[0], expected[2])
    for number, where in enumerate(wheres):
        mine = jobs(tmp_path / str(number))
        told = [event for rank in run_world(on_ranks, where[0], model, mine, where) for event in rank]
        seconds = {about["path"]: about["seconds"] for event, about in told if event == "result"}
        assert {path for path in seconds if "conditions" in seconds[path]} == {
            one.output for one in mine if one.request.image
        }
        for latents, wanted in zip(latents_of(mine), expected, strict=True):
            torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-5)


def with_the_copy_on_the_first_rank(
    world: World, model: Path, jobs: list[Job], moved: list[Job], where: tuple[Any, ...]
) -> None:
    on_ranks(world, model, moved if world.rank == 0 else jobs, where)


def test_other_ranks_read_the_first_ranks_copy(
    models: dict[str, Path], picture: Path, tmp_path: Path
) -> None:
    """Rank 1 encodes the pictures. The file that it was given is gone, and the first rank knows a copy."""
    given, copy = tmp_path / "given.png", tmp_path / "copy.png"
    for path in (given, copy):
        shutil.copy(picture, path)
    jobs, moved = ([job(models["i2v"], tmp_path, 0, image=str(path))] for path in (given, copy))
    given.unlink()
    where: tuple[Any, ...] = (2, "denoise=0 decode=1", {})
    run_world(with_the_copy_on_the_first_rank, 2, models["i2v"], jobs, moved, where)
    assert torch.isfinite(latents_of(jobs)[0]).all()
