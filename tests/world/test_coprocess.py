"""Attention co-processing: latents are equal bit for bit, whoever helps and with whatever share."""

import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_in_memory import DEPTH, FORMS, layout_of, of_rank, random_qkv, random_shares
from made_videos import latents_in
from paradit.attention.base import Attend, Layout, Site
from paradit.attention.local_attention import local, sdpa
from paradit.attention.patterns import Pattern
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups
from paradit.config.requests import Request
from paradit.distributed.shares import Shares
from paradit.distributed.world import World
from paradit.engine import predictors, rank
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.engine.output import Written, write_output
from paradit.models.spec import read_spec
from paradit.parallel import coprocess
from paradit.parallel.coprocess import Helped, Helper
from paradit.parallel.coprocess_message import Message
from paradit.parallel.run_blocks import run
from paradit.testing import run_world
from tiny import save_folder, save_hunyuan_folder
from video_jobs import Kept


def splits_over_gloo(world: World, num_helpers: int) -> None:
    numbers = random.Random(world.size)
    transport = world.transport(point_to_point=True)
    for turn in range(30):
        shares = random_shares(numbers, world.size - num_helpers, num_helpers)
        if world.rank >= shares.num_holders and not shares.work[world.rank]:
            continue  # nothing arrives here, so it need not be ready
        q, k, v = random_qkv(shares)
        attend = FORMS[("plain", "2 chunks", "paper")[turn % 3]](shares, transport)
        mine = of_rank(shares, world.rank, v, k, q)
        attended = run(attend(Site(0), iter(mine), layout_of(shares, world.rank)))
        (expected,) = of_rank(shares, world.rank, sdpa(q, k, v))
        assert torch.equal(attended, expected), shares


@pytest.mark.parametrize(("num_ranks", "num_helpers"), [(2, 1), (4, 2)])
def test_every_split_over_gloo_too(num_ranks: int, num_helpers: int) -> None:
    run_world(splits_over_gloo, num_ranks, num_helpers)


def helped_by_patterns(world: World) -> list[Tensor]:
    denoisers = world.part([0])
    if denoisers is None:
        helper = Helper(world, 1)
        assert helper.until_latents() == 1
        helper.until_latents()  # none come any more
        return []
    shares, patterns = Shares.equal(100, 3, 1), (None, Pattern(4), Pattern(4, run=4))
    sites = [Site(layer, pattern=pattern) for layer, pattern in enumerate(patterns)]
    helped = Helped(denoisers, world, plan=lambda *_: [77])
    number = helped.number_of(sites)
    step = Message(batch=2, num_tokens=100, num_heads=3, head_dim=DEPTH, sites=number, streams=1)
    (q, k, v), layout = random_qkv(shares), Layout(rope=layout_of(shares, 0).rope)
    attend = helped.begin(step)
    assert attend is not None
    found = [run(attend(site, iter((v, k, q)), layout)) for site in sites]
    helped.end()
    assert helped.latents([0]) == 1
    helped.close()
    expected = [run(local()(site, iter((v, k, q)), layout)) for site in sites]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    return expected


def test_helpers_know_the_patterns() -> None:
    (dense, *sparse), _ = run_world(helped_by_patterns, 2)
    assert not any(torch.allclose(dense, one, atol=1e-2) for one in sparse)


def jobs(model: Path, folder: Path, number: int) -> list[Job]:
    folder.mkdir(parents=True, exist_ok=True)
    spec = read_spec(model)
    return [
        Job(
            request=resolve(Request(prompt=f"a {colour} circle", seed=seed), spec),
            output=str(folder / f"{seed}.mp4"),
            latents=folder / f"{seed}.safetensors",
        )
        for seed, colour in enumerate(("red", "blue", "green", "cyan", "white", "black", "pink")[:number])
    ]


def any_split(step: Message, idle: tuple[int, ...], numbers: random.Random) -> Sequence[int]:
    """Return random work for some of the idle helpers, or for none of them."""
    rows = step.num_heads * (step.num_tokens + step.num_replicated)
    work = [0] * 4
    for helper in idle:
        if numbers.random() < 0.8:
            work[helper] = numbers.randint(0, (rows - sum(work)) * 2 // 3)
    return work


def third(rows: int, _row: float, _ranks: int, helpers: Sequence[Any], _parts: int) -> list[int]:
    """Give helpers a third of the rows; the formula would give them none of a test's little work."""
    return [rows // 3 // len(helpers)] * len(helpers)


class Slow(Helped):
    """Helped attention in slow motion, so that decoders are sometimes idle; the first step waits for them."""

    def begin(self, step: Message) -> Attend | None:
        time.sleep(0.05)
        deadline = time.monotonic() + 30
        while self._leads and not any(self._sent) and time.monotonic() < deadline:
            waits = (coprocess._waits(helper, 0) for helper in range(self._num_helpers))
            if all(map(self._world.is_published, waits)):
                break
            time.sleep(0.01)
        return super().begin(step)


def on_ranks(
    world: World, model: Path, all_jobs: list[Job], where: Placement, planned: bool
) -> list[tuple[str, Any]]:
    """Make videos on this rank, and return the events.

    planned: whether every step has a random split; otherwise shares are measured, and helpers get a third.
    """
    numbers, helpers = random.Random(5), len(where.helper_ranks)

    def plan(step: Message, idle: tuple[int, ...]) -> Sequence[int]:
        return any_split(step, idle, numbers)[:helpers]

    vars(predictors).update(Helped=partial(Slow, plan=plan if planned else None))
    vars(coprocess).update(helpers_work=third)

    def slow(*args: Any, **kwargs: Any) -> Written:
        written = write_output(*args, **kwargs)
        time.sleep(0.15 * (world.rank % 3))  # so that decoders are busy at different times
        return written

    vars(rank).update(write_output=slow)
    report = Kept()
    make_videos(all_jobs, read_spec(model), where, report, overwrite=False, world=world)
    return report.told


def latents(folder: Path, number: int) -> list[Tensor]:
    return [latents_in(folder, seed) for seed in range(number)]


def check(
    model: Path, folder: Path, ranks: int, groups: str, *, number: int, planned: bool = True, **fields: Any
) -> list[int]:
    """Compare videos with and without helpers bit for bit; return the helped steps of each request."""
    made, helped = {}, []
    for name in ("without", "with"):
        where = Placement.of(ranks=ranks, **read_groups(groups), **fields, coprocess=name == "with")
        told = run_world(
            on_ranks, ranks, model, jobs(model, folder / name, number), where, planned, timeout=180
        )
        results = [about for rank in told for event, about in rank if event == "result"]
        assert len(results) == number
        made[name] = latents(folder / name, number)
        if where.coprocess:
            helped = [
                result["coprocessed_steps"] for result in sorted(results, key=lambda about: about["seed"])
            ]
        else:
            assert not any("coprocessed_steps" in result for result in results)
    for ours, expected in zip(made["with"], made["without"], strict=True):
        assert torch.equal(ours, expected), float((ours - expected).abs().max())
    return helped


SETTINGS: dict[str, Any] = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny-wan", heads=3, **SETTINGS)


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-hunyuan"
    return save_hunyuan_folder(folder, heads=3, **(SETTINGS | {"width": 32, "height": 32}))


@pytest.mark.parametrize(
    ("ranks", "groups", "fields"),
    [
        (2, "denoise=0 decode=1", {"attention": "auto"}),
        (2, "denoise=1 decode=0 encode=1", {"attention": "ulysses"}),
        (3, "denoise=0-1 decode=2", {"attention": "ulysses"}),
        (3, "denoise=1-2 decode=0", {"attention": "pipesp", "chunks": 2}),
        (3, "denoise=0 decode=1,2", {"attention": "pipesp", "chunks": 3, "interleave": True}),
        (4, "denoise=1-2 decode=0,3 encode=1", {"attention": "ulysses", "interleave": True}),
        (4, "denoise=0-2 decode=2,3", {"attention": "pipesp", "chunks": 2, "interleave": True}),
    ],
)
def test_the_latents_are_those_without(
    wan: Path, tmp_path: Path, ranks: int, groups: str, fields: dict[str, Any]
) -> None:
    assert sum(check(wan, tmp_path, ranks, groups, number=4, **fields)) > 0


@pytest.mark.parametrize(
    ("ranks", "groups", "fields"),
    [
        (2, "denoise=0 decode=1", {"attention": "pipesp", "chunks": 2}),
        (4, "denoise=0-1 decode=2,3", {"attention": "ulysses"}),
        (3, "denoise=0 decode=1,2", {"attention": "ulysses", "decode_degree": 2}),
    ],
)
def test_text_travels_to_helpers(
    hunyuan: Path, tmp_path: Path, ranks: int, groups: str, fields: dict[str, Any]
) -> None:
    assert sum(check(hunyuan, tmp_path, ranks, groups, number=3, **fields)) > 0


@pytest.mark.parametrize("number", [1, 2, 7])
def test_nobody_waits_for_ever(wan: Path, tmp_path: Path, number: int) -> None:
    assert sum(check(wan, tmp_path, 3, "denoise=0 decode=1,2", number=number, attention="auto")) > 0


def test_steps_are_measured_and_judged(wan: Path, tmp_path: Path) -> None:
    helped = check(wan, tmp_path, 4, "denoise=0-1 decode=2,3", number=3, planned=False, attention="ulysses")
    assert sum(helped) > 0
