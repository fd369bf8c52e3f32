"""Stages on ranks of their own: equal videos, only the needed parts loaded, and requests that fail alone."""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.placement_text import read_fields, read_groups, read_placement
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.events import Began, Failed, Finished, MemoryUsed
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.spec import read_spec
from paradit.progress import Event, Progress
from paradit.scheduling.stages import AHEAD, STAGES, decoder_of, steps
from paradit.testing import run_world
from tiny import save_folder, save_hunyuan_folder

PROMPTS = ["a red circle", "a blue square", "a green ring", "a white triangle", "a cyan circle"]
PLACEMENTS = [
    (1, ""),
    (2, "denoise=0 decode=1"),
    (2, "denoise=0-1 decode=1 encode=0"),
    (3, "denoise=0-1 decode=2"),
    (3, "denoise=1-2 decode=0 encode=1"),
    (4, "denoise=1-2 decode=0,3 encode=1"),
    (4, "denoise=0-2 decode=2,3 encode=3"),
]
TOGETHER = [
    (2, "denoise=0-1 decode=0-1 encode=0"),
    (3, "denoise=0 decode=1,2 encode=1"),
    (3, "denoise=0 decode=0-2 encode=1"),
    (3, "denoise=0-1 decode=1,2 encode=2"),
    (4, "denoise=1-2 decode=0,3 encode=1"),
]
"""Placements in which all ranks that decode share each video: (ranks, groups)."""


def placement(ranks: int, groups: str, **fields: Any) -> Placement:
    return Placement.of(ranks=ranks, **(read_groups(groups) if groups else {}), **fields)


@pytest.mark.parametrize(
    ("ranks", "groups", "share"), [(*p, False) for p in PLACEMENTS] + [(*p, True) for p in TOGETHER]
)
@pytest.mark.parametrize("num_requests", [0, 1, 2, 7])
def test_every_request_goes_its_way_and_nobody_waits_for_ever(
    ranks: int, groups: str, share: bool, num_requests: int
) -> None:
    where = placement(ranks, groups)
    if share:
        where = replace(where, decode_degree=len(where.decode_ranks))
    decoders = where.decode_groups
    of_rank = [next((n for n, group in enumerate(decoders) if r in group), -1) for r in range(ranks)]
    programs = [
        deque(steps(where.stages_of(r), of_rank[r], len(decoders), range(num_requests))) for r in range(ranks)
    ]
    done: dict[str, dict[int, set[int]]] = {stage: {} for stage in STAGES}
    while any(programs):
        moved = False
        for rank, left in enumerate(programs):
            if not left:
                continue
            stage, request = left[0]
            before = STAGES[STAGES.index(stage) - 1] if stage != "encode" else None
            sources = {"denoise": where.encode_ranks, "decode": where.denoise_ranks}.get(stage, ())
            if before and not set(sources) <= done[before].get(request, set()):
                continue
            # Ranks that share a decode begin it together.
            group = decoders[of_rank[rank]] if stage == "decode" else (rank,)
            begun = done[stage].get(request, set())
            if any(r not in begun and list(programs[r])[:1] != [(stage, request)] for r in group):
                continue
            # Outputs of `AHEAD` requests may wait for the next stage, while one more is being made.
            after = {"encode": "denoise", "denoise": "decode"}.get(stage)
            if after:
                assert request - len(done[after]) <= AHEAD + len(decoders)
            done[stage].setdefault(request, set()).add(rank)
            left.popleft()
            moved = True
        assert moved, f"all wait: {[list(left)[:1] for left in programs]}"
    for request in range(num_requests):
        assert done["denoise"][request] == set(where.denoise_ranks)
        assert done["decode"][request] == set(decoders[decoder_of(request, len(decoders))])


def test_placements_are_written_in_two_ways() -> None:
    where = placement(8, "denoise=0-5 decode=6,7 encode=6", attention="ulysses")
    assert where.denoise_ranks == (0, 1, 2, 3, 4, 5)
    assert where.stages_of(6) == ("encode", "decode")
    assert read_placement(where.to_json()) == where
    assert Placement(ranks=3).stages_of(0) == STAGES
    assert Placement(ranks=3).stages_of(2) == ("denoise",)
    assert Placement(ranks=3, denoise=(0, 1), decode=(2,)).encode_ranks == (2,)


@pytest.mark.parametrize(
    ("ranks", "groups", "message"),
    [
        (3, "denoise=0-1 decode=3", "decode must be different ranks from 0 to 2, got 3"),
        (3, "denoise=0,0 decode=1", "denoise must be different ranks from 0 to 2, got 0, 0"),
        (4, "denoise=0-1 decode=2", "rank 3 does nothing: give it a stage, or use fewer ranks"),
        (4, "denoise=0-1 decode=2,3 encode=2,3", "one rank encodes, got 2, 3: use encode=2"),
        (3, "dnoise=0-1", "placement is written like"),
        (3, "decode=1-", "placement is written like"),
        (3, " ", "placement is empty"),
    ],
)
def test_placements_that_cannot_be(ranks: int, groups: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Placement.of(ranks=ranks, **read_groups(groups))


@pytest.mark.parametrize("text", ["{", "[]", '{"rank": 2}', '{"decode": 1}', '{"decode": ["1"]}'])
def test_files_that_hold_no_placement(text: str) -> None:
    with pytest.raises(InputError):
        read_fields(text)


class Kept(Progress):
    """Progress that records the events that it is told."""

    def __init__(self) -> None:
        super().__init__(self.hear)
        self.told: list[tuple[str, Any]] = []

    def hear(self, event: Event) -> None:
        match event:
            case Began():
                self.told.append(("request", (event.job, event.count, event.prompt)))
            case Finished():
                self.told.append(("result", event.result))
            case Failed():
                self.told.append(("failed", (event.job, event.count, event.message)))
            case MemoryUsed():
                self.told.append(("memory", (event.by_rank, event.stages)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder("wan21", folder, heads=3, width=48, height=48, num_frames=9, num_inference_steps=2)


def jobs(model: Path, folder: Path) -> list[Job]:
    folder.mkdir(parents=True, exist_ok=True)
    spec = read_spec(model)
    return [
        Job(
            request=resolve(Request.of(prompt=prompt, seed=number), spec),
            output=str(folder / f"{number}.mp4"),
            latents=folder / f"{number}.safetensors",
            index=number,
            count=len(PROMPTS),
        )
        for number, prompt in enumerate(PROMPTS)
    ]


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
        found.append((load_file(folder / f"{number}.safetensors")["latents"], frames))
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
    settings = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 2}
    model = save_hunyuan_folder(tmp_path / "tiny-hunyuan", heads=3, **settings)
    for groups in ("", "denoise=0-1 decode=2"):
        where = placement(3 if groups else 1, groups, attention="ulysses")
        run_world(on_ranks, where.ranks, model, tmp_path / f"of-{where.ranks}", where)
    apart, expected = (made(tmp_path / f"of-{ranks}") for ranks in (3, 1))
    for (latents, _), (wanted, _) in zip(apart, expected, strict=True):
        torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-5)


def loaded(world: World, model: Path, where: Placement) -> list[bool]:
    from paradit.text_to_video import load

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

    def watched(self: Any, model: Any, *others: Any) -> Any:
        seen.append([len(expert.module.blocks) for expert in model.experts])
        share = divide(self, model, *others)
        seen.append([len(expert.module.blocks) for expert in model.experts])
        return share

    QueueSampler.divide = watched  # type: ignore[method-assign]
    spec, where = read_spec(model), Placement.of(ranks=2, pipeline_degree=2)
    request = resolve(Request.of(prompt="a", method="dualparal", block_frames=1, context_frames=1), spec)
    job = replace(jobs(model, folder)[0], request=request)
    make_videos([job], spec, where, Progress(), overwrite=False, world=world)
    return seen


def test_a_rank_of_a_pipeline_never_has_others_layers(tmp_path: Path) -> None:
    settings = {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 2}
    model = save_folder("wan22_a14b", tmp_path / "tiny", layers=4, **settings)
    seen = run_world(held_before_and_after, 2, model, tmp_path / "made")
    for before, after in seen:
        assert before == [0, 0]
        assert after[0] == after[1]
    assert sum(after[0] for _, after in seen) == 4


def poisoned(world: World, model: Path, folder: Path, where: Placement) -> list[tuple[str, Any]]:
    """Make videos with NaN noise in the second request, and without the third one's folder."""
    from paradit.sampling import full_sequence as stage

    initial_noise = stage.initial_noise

    def noise(shape: Any, seed: int, device: torch.device) -> torch.Tensor:
        return initial_noise(shape, seed, device) * (torch.nan if seed == 1 else 1.0)

    stage.initial_noise = noise  # type: ignore[assignment]
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
    assert "'a blue square': the latents are not finite after step 1" in str(failed)
    assert "No such file or directory" in str(failed)
    paths = sorted(Path(about["path"]).name for event, about in told if event == "result")
    assert paths == ["0.mp4", "3.mp4", "4.mp4"]
