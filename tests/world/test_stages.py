"""Stages on ranks of their own: equal videos, only the needed parts loaded, and requests that fail alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from made_videos import latents_in
from messages import says
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.engine.worker import agree
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.testing import run_world
from tiny import save_folder, save_hunyuan_folder
from video_jobs import PLACEMENTS, PROMPTS, Kept, jobs, placement


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder("wan21", folder, heads=3, width=48, height=48, num_frames=9, num_inference_steps=2)


def on_ranks(
    world: World, model: Path, folder: Path, where: Placement, number: int = len(PROMPTS)
) -> list[tuple[str, Any]]:
    report, mine = Kept(), jobs(model, folder)[:number]
    world_or_none = world if where.ranks > 1 else None
    make_videos(mine, read_spec(model), where, report, overwrite=False, world=world_or_none)
    return report.told


def made(folder: Path, count: int = len(PROMPTS)) -> list[tuple[torch.Tensor, np.ndarray]]:
    found = []
    for number in range(count):
        with av.open(str(folder / f"{number}.mp4")) as file:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        found.append((latents_in(folder, number), frames))
    return found


def test_every_placement_makes_the_same_videos(model: Path, tmp_path: Path) -> None:
    for number, (ranks, groups) in enumerate(PLACEMENTS):
        folder = tmp_path / str(number)
        where = placement(ranks, groups, attention="ulysses")
        told = [event for rank in run_world(on_ranks, ranks, model, folder, where) for event in rank]
        results = [about for event, about in told if event == "result"]
        assert sorted(result["path"] for result in results) == [job.output for job in jobs(model, folder)]
        assert all({"denoise", "decode"} <= set(result["seconds"]) for result in results)
        apart = len(where.denoise_ranks) < ranks
        assert [event for event, _ in told if event not in ("request", "result")] == ["memory"] * apart
        for (latents, frames), (expected, pixels) in zip(made(folder), made(tmp_path / "0"), strict=True):
            torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
            if torch.equal(latents, expected):
                assert np.array_equal(frames, pixels)
            assert pixels.shape == (9, 48, 48, 3)


@pytest.mark.parametrize(("ranks", "replicas", "number"), [(2, 2, 5), (4, 2, 3), (3, 3, 2)])
def test_replicas_make_the_same_videos(
    model: Path, tmp_path: Path, ranks: int, replicas: int, number: int
) -> None:
    where = Placement(ranks=ranks, replicas=replicas, attention="ulysses")
    told = run_world(on_ranks, ranks, model, tmp_path / "replicas", where, number)
    run_world(on_ranks, 1, model, tmp_path / "one", Placement(), number)
    size = ranks // replicas
    for rank, events in enumerate(told):
        # The first rank of each replica reports its own requests.
        mine = range(rank // size, number, replicas) if rank % size == 0 else ()
        results = [about for event, about in events if event == "result"]
        assert [Path(about["path"]).name for about in results] == [f"{index}.mp4" for index in mine]
        assert not any("peak_memory_bytes" in about for about in results)
        assert [about for event, about in events if event == "request"] == [
            (index, len(PROMPTS), PROMPTS[index]) for index in mine
        ]
    ((by_rank, stages),) = [about for events in told for event, about in events if event == "memory"]
    assert len(by_rank) == ranks
    assert stages == [where.stages_of(rank) for rank in range(ranks)]
    for (latents, _), (expected, _) in zip(
        made(tmp_path / "replicas", number), made(tmp_path / "one", number), strict=True
    ):
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
        if size == 1:
            assert torch.equal(latents, expected)


def test_hunyuan_video_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 2}
    model = save_hunyuan_folder(tmp_path / "tiny-hunyuan", heads=3, **settings)
    for groups in ("", "denoise=0-1 decode=2"):
        where = placement(3 if groups else 1, groups, attention="ulysses")
        run_world(on_ranks, where.ranks, model, tmp_path / f"of-{where.ranks}", where)
    apart, expected = (made(tmp_path / f"of-{ranks}") for ranks in (3, 1))
    for (latents, _), (wanted, _) in zip(apart, expected, strict=True):
        torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-5)


def loaded(world: World, model: Path, where: Placement) -> list[bool]:
    from paradit.pipeline import load

    pipeline: Any = load(read_spec(model), stages=where.stages_of(world.rank))._pipeline  # type: ignore[attr-defined]
    return [
        getattr(pipeline, name) is not None for name in ("text_encoder", "tokenizer", "transformer", "vae")
    ]


def test_a_rank_loads_what_it_needs(model: Path) -> None:
    where = placement(3, "denoise=0 decode=1 encode=2")
    assert run_world(loaded, 3, model, where) == [
        [False, False, True, False],
        [False, False, False, True],
        [True, True, False, False],
    ]


def held_before_and_after(world: World, model: Path, folder: Path) -> list[list[int]]:
    """Return each expert's number of layers before they are divided, and afterwards."""
    from paradit.sampling.dualparal import QueueSampler

    divide, seen = QueueSampler.divide, []

    def watched(self: Any, work: Any, *others: Any) -> Any:
        seen.append([len(expert.module.blocks) for expert in work.model.experts])
        share = divide(self, work, *others)
        seen.append([len(expert.module.blocks) for expert in work.model.experts])
        return share

    QueueSampler.divide = watched  # type: ignore[method-assign, assignment]
    spec, where = read_spec(model), Placement.of(ranks=2, pipeline_degree=2)
    request = resolve(Request.of(prompt="a", method="dualparal", block_frames=1, context_frames=1), spec)
    job = replace(jobs(model, folder)[0], request=request)
    make_videos([job], spec, where, Progress(), overwrite=False, world=world)
    return seen


def test_a_rank_of_a_pipeline_never_has_others_layers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 2}
    model = save_folder("wan22_a14b", tmp_path / "tiny", layers=4, **settings)
    seen = run_world(held_before_and_after, 2, model, tmp_path / "made")
    for before, after in seen:
        assert before == [0, 0]
        assert after[0] == after[1]
    assert sum(after[0] for _, after in seen) == 4


def poisoned(world: World, model: Path, folder: Path, where: Placement) -> list[tuple[str, Any]]:
    """Make videos with NaN noise in the second request, and without the third one's folder."""
    from paradit.sampling import full_sequence as stage

    initial_noise = vars(stage)["initial_noise"]

    def noise(shape: Any, seed: int, device: torch.device) -> torch.Tensor:
        return initial_noise(shape, seed, device) * (torch.nan if seed == 1 else 1.0)

    vars(stage).update(initial_noise=noise)
    all_jobs = jobs(model, folder)
    all_jobs[2] = replace(all_jobs[2], latents=folder / "gone" / "l.safetensors")
    report = Kept()
    make_videos(all_jobs, read_spec(model), where, report, overwrite=False, world=world)
    return report.told


@pytest.mark.parametrize(("groups", "replicas"), [("", 1), ("denoise=0 decode=1", 1), ("", 2)])
def test_a_request_fails_alone(model: Path, tmp_path: Path, groups: str, replicas: int) -> None:
    where = placement(2, groups, attention="ulysses", replicas=replicas)
    told = [event for rank in run_world(poisoned, 2, model, tmp_path, where) for event in rank]
    failed = [about for event, about in told if event == "failed"]
    assert [(index, count) for index, count, _ in sorted(failed)] == [(1, 5), (2, 5)]
    assert says(str(failed), "'a blue square': .. not finite .. step 1")
    assert "No such file or directory" in str(failed)
    paths = sorted(Path(about["path"]).name for event, about in told if event == "result")
    assert paths == ["0.mp4", "3.mp4", "4.mp4"]


def with_its_own_placement(world: World) -> None:
    agree(world, Placement(ranks=2, attention=("ulysses", "pipesp")[world.rank]))


def test_ranks_with_different_placements_do_not_wait_for_each_other() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 has Placement\(.*'pipesp'.*rank 0 has Placement\("):
        run_world(with_its_own_placement, 2)
