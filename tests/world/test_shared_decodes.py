"""Decodes whose tiles ranks share: the frames of one process, with smaller tiles if memory runs out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from messages import says
from paradit.config.errors import OutOfMemory
from paradit.config.placement import Placement
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.models.spec import read_spec
from paradit.pipeline import load
from paradit.progress import Progress
from paradit.stages.decode import decode
from paradit.testing import run_world
from tiny import decoded, latents_of, save_folder, save_hunyuan_folder
from video_jobs import Kept, Warned, jobs, placement


def decoded_together(
    world: World, folder: Path, latents: Tensor, tile: int, failing: dict[int, list[Any]]
) -> tuple[np.ndarray | None, list[str]]:
    """Decode on ranks that share the tiles; return the frames or None, and the warnings.

    failing: for each rank, (exception, number of the piece that raises it) for each attempt.
    """
    model = load(read_spec(folder), "fp32", stages=("decode",))
    told = Warned()
    plans = iter(failing.get(world.rank, []))
    decoder = type(model).decoder

    def failing_decoder(self: Any, latents: Tensor, *, park: bool = False) -> Any:
        made: Any = decoder(self, latents, park=park)
        plan = next(plans, None)
        if plan is not None:
            made.pieces = Failing(made.pieces, *plan)
        return made

    type(model).decoder = failing_decoder  # type: ignore[method-assign, assignment]
    try:
        found = decode(model, latents, tile, told, lambda all: np.stack(list(all)), world=world)
    except OutOfMemory as error:
        told.said.append(str(error))
        found = None
    return found, told.said


def decoded_nan(world: World, folder: Path) -> str:
    """Decode latents that are NaN in their last frame, and return the error."""
    model = load(read_spec(folder), "fp32", stages=("decode",))
    latents = latents_of(model, 3, 18, 16)
    latents[:, :, 2] = torch.nan
    try:
        decode(model, latents, 64, Progress(), list, world=world)
    except FloatingPointError as error:
        return str(error)
    return ""


def test_frames_that_are_not_finite_end_the_decode_on_all_ranks(tmp_path: Path) -> None:
    assert run_world(decoded_nan, 2, save_folder("wan21", tmp_path)) == [
        "the decoded frames are not finite",
        "",
    ]


class Failing:
    """Function that decodes tiles, in which the piece numbered `turn` raises an exception."""

    def __init__(self, pieces: Any, error: Exception, turn: int) -> None:
        self._pieces, self._error, self._turn = pieces, error, turn

    def __call__(self, tile: Any) -> Iterator[Tensor]:
        for turn, piece in enumerate(self._pieces(tile)):
            if turn == self._turn:
                raise self._error
            yield piece


CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 1000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("kind", ["wan21", "wan22_ti2v", "hunyuan"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_frames_of_one_process(kind: str, ranks: int, tmp_path: Path) -> None:
    folder = save_hunyuan_folder(tmp_path) if kind == "hunyuan" else save_folder(kind, tmp_path)
    model = load(read_spec(folder), "fp32", stages=("decode",))
    latents, tile = latents_of(model, 6, 10, 8), model.spec.vae.tile_multiple
    expected = np.concatenate(list(decoded(model, latents, tile)))
    first, *others = run_world(decoded_together, ranks, folder, latents, tile, {})
    assert first[0] is not None and np.array_equal(first[0], expected)
    assert others == [(None, [])] * (ranks - 1)


@pytest.mark.parametrize(("rank", "turn"), [(0, 0), (1, 1), (2, 2)])
def test_memory_that_runs_out_on_one_rank_is_answered_by_all(rank: int, turn: int, tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    model = load(read_spec(folder), "fp32", stages=("decode",))
    latents = latents_of(model, 3, 18, 16)
    failing = {rank: [(torch.OutOfMemoryError("CUDA out of memory."), turn), None]}
    (found, said), *_ = run_world(decoded_together, 3, folder, latents, 64, failing)
    assert found is not None and np.array_equal(found, np.concatenate(list(decoded(model, latents, 32))))
    (warning,) = said
    assert says(warning, "memory ran out .. tiles of 64 pixels .. tiles of 32 pixels")


def test_memory_that_runs_out_for_good(tmp_path: Path) -> None:
    folder = save_folder("wan21", tmp_path)
    failing = {1: [(CPU_ERROR, 1)] * 2}
    shape = latents_of(load(read_spec(folder), "fp32", stages=("decode",)), 2, 18, 16)
    for found, said in run_world(decoded_together, 2, folder, shape, 64, failing):
        assert found is None
        assert says(said[-1], "memory ran out .. tiles of 32 pixels .. no smaller")


def on_ranks(world: World, model: Path, folder: Path, where: Placement) -> list[tuple[str, Any]]:
    """Make videos in tiles on this rank, without the third request's folder, and return the events."""
    report, spec = Kept(), read_spec(model)
    all_jobs = [replace(job, request=replace(job.request, vae_tile=32)) for job in jobs(model, folder)]
    all_jobs[2] = replace(all_jobs[2], latents=folder / "gone" / "l.safetensors")
    world_or_none = world if where.ranks > 1 else None
    make_videos(all_jobs, spec, where, report, overwrite=False, world=world_or_none)
    return report.told


@pytest.mark.parametrize(
    ("ranks", "groups"),
    [
        (2, "denoise=0-1 decode=0-1 encode=0"),
        (3, "denoise=0 decode=1,2 encode=1"),
        (3, "denoise=0 decode=0-2 encode=1"),
    ],
)
def test_the_engine_shares_decodes(ranks: int, groups: str, tmp_path: Path) -> None:
    """Ranks that share decodes write the files of one process; a request that fails, fails alone."""
    settings = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": 2}
    model = save_folder("wan21", tmp_path / "tiny-wan", heads=3, **settings)
    shared = placement(ranks, groups, attention="ulysses")
    shared = replace(shared, decode_degree=len(shared.decode_ranks))
    for name, where in {"one": Placement(), "many": shared}.items():
        ran = run_world(on_ranks, where.ranks, model, tmp_path / name, where, timeout=120)
        events = [event for rank in ran for event in rank]
        paths = [Path(about["path"]).name for event, about in events if event == "result"]
        assert paths == ["0.mp4", "1.mp4", "3.mp4", "4.mp4"]
        ((index, count, message),) = [about for event, about in events if event == "failed"]
        assert (index, count) == (2, 5)
        assert "No such file or directory" in message
    for video in ("0.mp4", "1.mp4", "3.mp4", "4.mp4"):
        assert (tmp_path / "many" / video).read_bytes() == (tmp_path / "one" / video).read_bytes()
