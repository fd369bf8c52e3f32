"""Pictures of requests on several ranks: whoever encodes them, resumed runs, and files that are gone."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from messages import says
from paradit.config.methods.method import resolve
from paradit.config.requests import ENDLESS, Request
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.spec import read_spec
from paradit.parallel.predictor import LocalPredictor
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.sampling.sampler import Work
from paradit.stages.conditions import conditions, pixels
from paradit.stages.denoise import denoise
from paradit.stages.encode import encode
from paradit.testing import run_world
from tiny import save_folder
from video_jobs import Kept, placement

BLOCKS = {"method": "dualparal", "block_frames": 2, "context_frames": 1}
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
    ("method", "where"),
    [({}, (3, "denoise=0 decode=1-2 encode=0", {})), (BLOCKS, (3, "denoise=0-1 decode=2", {}))],
)
def test_requests_with_and_without_a_picture(
    models: dict[str, Path], picture: Path, tmp_path: Path, method: dict[str, Any], where: Any
) -> None:
    """One after another, on the same ranks. Each class of model is in tests/world/test_picture_ranks.py."""

    def jobs(folder: Path) -> list[Job]:
        pictures = [str(picture), None, str(picture)]
        return [
            job(models["wan22_ti2v"], folder, number, image=path, **method)
            for number, path in enumerate(pictures)
        ]

    alone, mine = jobs(tmp_path / "alone"), jobs(tmp_path / "together")
    on_ranks(None, models["wan22_ti2v"], alone, (1, "", {}))
    expected = latents_of(alone)
    assert not torch.equal(expected[0], expected[2])
    told = [
        event
        for rank in run_world(on_ranks, where[0], models["wan22_ti2v"], mine, where, timeout=240)
        for event in rank
    ]
    seconds = {about["path"]: about["seconds"] for event, about in told if event == "result"}
    assert {path for path in seconds if "conditions" in seconds[path]} == {mine[0].output, mine[2].output}
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


@pytest.mark.parametrize(("method", "groups"), [(BLOCKS, ""), ({}, "denoise=0 decode=1")])
def test_pictures_that_cannot_be_read_fail_alone(
    models: dict[str, Path], picture: Path, tmp_path: Path, method: dict[str, Any], groups: str
) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes(picture.read_bytes())
    paths = [picture, gone, picture]
    mine = [job(models["i2v"], tmp_path, n, image=str(path), **method) for n, path in enumerate(paths)]
    gone.unlink()
    told = [event for rank in run_world(on_ranks, 2, models["i2v"], mine, (2, groups, {})) for event in rank]
    ((number, _, message),) = [about for event, about in told if event == "failed"]
    assert number == 1
    assert says(message, "a red circle .. image .. does not exist")
    made = [about["path"] for event, about in told if event == "result"]
    assert made == [mine[0].output, mine[2].output]


class States:
    """Saved progress of a request: every state that it offers, and the finished blocks."""

    def __init__(self, begin: bytes = b"", blocks: dict[int, Tensor] | None = None) -> None:
        self.begin, self.states, self.blocks = begin, list[bytes](), blocks or {}

    def last(self, parse: Any) -> bytes:  # noqa: ARG002
        return self.begin

    def offer(self, state: Any, *, is_open: bool = False) -> bool:  # noqa: ARG002
        self.states.append(state())
        return True

    def block(self, number: int) -> Tensor:
        return self.blocks[number]

    def keep(self, number: int, latents: Tensor) -> None:
        self.blocks[number] = latents


@pytest.mark.parametrize("method", [{}, BLOCKS, FRAMES], ids=["full", "dualparal", "fifo"])
def test_resumed_with_the_same_bits(
    models: dict[str, Path], picture: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    request = job(models["wan22_ti2v"], tmp_path, 0, image=str(picture), **method).request
    model = load(read_spec(models["wan22_ti2v"]), "fp32")
    prompts = encode(model, request, Progress())

    def made(states: States) -> list[Tensor]:
        work = Work(
            model=model,
            request=request,
            prompts=prompts,
            conditions=conditions(model, request, Progress()),
            progress=Progress(),
            predictor=LocalPredictor(),
            checkpoints=states,
        )
        return list(denoise(work))

    whole = States()
    expected = made(whole)
    assert torch.equal(
        expected[0][:, :, :1], model.encode_conditions(request, pixels(request))[0]
    )  # the given frame
    for state in whole.states:
        for latents, wanted in zip(made(States(state, whole.blocks)), expected, strict=True):
            assert torch.equal(latents, wanted)


def test_an_endless_video_has_an_image(models: dict[str, Path], picture: Path, tmp_path: Path) -> None:
    request = job(models["i2v"], tmp_path, 0, image=str(picture), num_frames=ENDLESS, **BLOCKS).request
    model = load(read_spec(models["i2v"]), "fp32")
    encoded = conditions(model, request, Progress())
    assert tuple(tuple(one.shape) for one in encoded) == model.condition_shapes(request)
    work = Work(
        model=model,
        request=request,
        prompts=encode(model, request, Progress()),
        conditions=encoded,
        progress=Progress(),
        predictor=LocalPredictor(),
    )
    blocks = islice(denoise(work), 25)  # beyond the encoded frames
    assert all(block.isfinite().all() for block in blocks)
