"""Attention co-processing: latents are equal bit for bit, whoever helps and with whatever share."""

import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from paradit.attention.base import Attend
from paradit.attention.local_attention import sdpa
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups, read_placement
from paradit.config.requests import Request
from paradit.distributed.shares import Shares
from paradit.distributed.world import World
from paradit.engine import predictors, rank
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.engine.output import Written
from paradit.models.spec import read_spec
from paradit.parallel import coprocess
from paradit.parallel.coprocess import Helped, Message
from paradit.parallel.run_blocks import run
from paradit.scheduling.helper_work import TRIALS, HelperSpeed, Judge, helpers_work
from paradit.testing import run_world
from test_stages import Kept
from test_ulysses import FORMS, attend_on_ranks, layout_of, of_rank, random_qkv
from tiny import save_folder, save_hunyuan_folder

# Shares


def speed(compute: float = 1.0, link: float = 0.0, fixed: float = 0.0) -> HelperSpeed:
    return HelperSpeed(compute=compute, link=link, fixed=fixed)


@pytest.mark.parametrize(
    ("helpers", "expected"),
    [
        ([speed()], [300]),  # as fast as each of the three others
        ([speed(2.0)], [171]),  # half as fast: 1 / 7
        ([speed(), speed(0.5)], [200, 400]),
        ([speed(link=0.25)], [171]),  # messages take as long as the work
        ([speed(fixed=300.0)], [75]),  # all end after 375
        ([speed(fixed=400.0)], [0]),  # the others are done by then
        ([speed(fixed=400.0), speed()], [0, 300]),
        ([speed(0.25, link=1000.0)], [0]),
        ([], []),
    ],
)
def test_a_share_is_what_can_be_done_and_sent_in_time(
    helpers: list[HelperSpeed], expected: list[int]
) -> None:
    assert helpers_work(1200, 1.0, 3, helpers, parts=1) == expected


def test_what_is_in_parts_travels_while_it_is_computed() -> None:
    helpers = [speed(link=0.5)]  # 1.5 in, 1 to compute, 0.5 out
    assert helpers_work(1200, 1.0, 3, helpers, parts=1) == [120]  # 3 a row
    assert helpers_work(1200, 1.0, 3, helpers, parts=3) == [171]  # 2
    assert helpers_work(1200, 1.0, 3, helpers, parts=10**9) == [218]  # 1.5


@pytest.mark.parametrize("seed", range(20))
def test_all_end_together(seed: int) -> None:
    numbers = random.Random(seed)
    helpers = [
        speed(numbers.uniform(0.2, 5), numbers.uniform(0, 1), numbers.choice([0, 20, 90, 500]))
        for _ in range(4)
    ]
    rows, ranks, parts = 10_000, numbers.randint(1, 5), numbers.choice([1, 2, 6])
    work = helpers_work(rows, 1.0, ranks, helpers, parts)
    end = (rows - sum(work)) / ranks
    for helper, number in zip(helpers, work, strict=True):
        times = 3 * helper.link, helper.compute, helper.link
        row = max(times) + (sum(times) - max(times)) / parts
        # A helper without work could not have done any in time.
        assert (
            helper.fixed + number * row == pytest.approx(end, abs=row + 4)
            if number
            else helper.fixed + row >= end - 4
        )


# Whether it helps


def judged(
    seconds: dict[tuple[int, ...], float], steps: int, judge: Judge | None = None
) -> list[tuple[int, ...]]:
    """Return the helpers that a judge chooses in each of several steps, while all helpers are idle.

    seconds: the time of a step, by the helpers that help in it.
    """
    judge, idle = judge or Judge(), max(seconds, key=len)
    chosen = []
    for _ in range(steps):
        chosen.append(judge.choose(idle))
        judge.record(chosen[-1], seconds[chosen[-1]])
    return chosen


def test_help_that_does_not_help_is_left_out() -> None:
    first = [(), (0, 1)] * (TRIALS + 1)
    assert judged({(): 1.0, (0, 1): 0.9}, 20) == first + [(0, 1)] * 12
    assert judged({(): 1.0, (0, 1): 1.0}, 20) == first + [()] * 12


def test_times_that_change_are_seen() -> None:
    judge = Judge()
    judged({(): 1.0, (0,): 0.8}, 20, judge)
    # Everything is slower now, with and without help, so the help must not be blamed.
    later = judged({(): 2.0, (0,): 1.6}, 40, judge)
    assert later[-20:] == [(0,)] * 20


def test_who_is_idle_is_judged_together() -> None:
    judge = Judge()
    judged({(): 1.0, (1,): 0.8}, 20, judge)
    judged({(): 1.0, (0, 1): 1.2}, 20, judge)
    assert judge.choose((1,)) == (1,)
    assert judge.choose((0, 1)) == judge.choose(()) == ()


# The exchange


def random_shares(numbers: random.Random, num_holders: int, num_helpers: int) -> Shares:
    """Return shares of random work for helpers, on one of several shapes."""
    tokens, heads, text = numbers.choice([(27, 3, 0), (64, 5, 5), (324, 2, 0), (100, 4, 7)])
    own = Shares.equal(tokens, heads, num_holders, num_replicated=text)
    ends = sorted(numbers.randint(0, sum(own.work)) for _ in range(num_helpers))
    return own.with_helpers([end - before for before, end in zip([0, *ends], ends, strict=False)])


@pytest.mark.parametrize("form", ["plain", "2 chunks", "5 chunks"])
@pytest.mark.parametrize(("num_holders", "num_helpers"), [(1, 1), (2, 1), (3, 2), (2, 3)])
def test_every_split_has_the_bits_of_one_place(num_holders: int, num_helpers: int, form: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    numbers = random.Random(num_holders * 10 + num_helpers)
    for _ in range(25):
        shares = random_shares(numbers, num_holders, num_helpers)
        q, k, v = random_qkv(shares)
        attended, _ = attend_on_ranks(shares, q, k, v, FORMS[form])
        assert torch.equal(attended, sdpa(q, k, v)), shares
    torch.set_num_threads(threads)


def splits_over_gloo(world: World, num_helpers: int) -> None:
    numbers = random.Random(world.size)
    transport = world.transport(point_to_point=True)
    for turn in range(30):
        shares = random_shares(numbers, world.size - num_helpers, num_helpers)
        if world.rank >= shares.num_holders and not shares.work[world.rank]:
            continue  # nothing arrives here, so it need not be ready
        q, k, v = random_qkv(shares)
        attend = FORMS[("plain", "2 chunks")[turn % 2]](shares, transport)  # type: ignore[arg-type]
        mine = of_rank(shares, world.rank, v, k, q)
        attended = run(attend(0, iter(mine), layout_of(shares, world.rank)))
        (expected,) = of_rank(shares, world.rank, sdpa(q, k, v))
        assert torch.equal(attended, expected), shares


@pytest.mark.parametrize(("num_ranks", "num_helpers"), [(2, 1), (4, 2)])
def test_every_split_over_gloo_too(num_ranks: int, num_helpers: int) -> None:
    run_world(splits_over_gloo, num_ranks, num_helpers)


def test_a_helper_sends_nothing_in() -> None:
    shares = Shares.equal(27, 3, 2, num_replicated=4).with_helpers([31])
    _, transports = attend_on_ranks(shares, *random_qkv(shares), FORMS["plain"])
    # Only its results travel: tokens to their ranks, and the text to both; 2 x 16 values of four bytes.
    (head, *_), text = shares.work_of(2), shares.replicated
    rows = sum(len(box) + len(box.intersect(text) or ()) for box in shares.work_of(2))
    assert head.stop == shares.num_rows
    assert transports[2].bytes_sent == rows * 2 * 16 * 4


# The engine


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

    predictors.Helped = partial(Slow, plan=plan if planned else None)  # type: ignore[misc, assignment]
    coprocess.helpers_work = third  # type: ignore[assignment]
    keep = rank.keep

    def slow(*args: Any, **kwargs: Any) -> Written:
        written = keep(*args, **kwargs)
        time.sleep(0.15 * (world.rank % 3))  # so that decoders are busy at different times
        return written

    rank.keep = slow
    report = Kept()
    make_videos(all_jobs, read_spec(model), where, report, overwrite=False, world=world)
    return report.told


def latents(folder: Path, number: int) -> list[Tensor]:
    return [load_file(folder / f"{seed}.safetensors")["latents"] for seed in range(number)]


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


SETTINGS = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": 6}


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


# Refusals


@pytest.mark.parametrize(
    ("groups", "fields", "message"),
    [
        ("denoise=0-2", {}, "coprocess needs ranks that decode and do not denoise: use a placement such as"),
        ("denoise=0-2 decode=2", {}, "coprocess needs ranks that decode and do not denoise"),
        ("denoise=0-1 decode=2", {"cfg_degree": 2}, "use cfg_degree 1, or no coprocess"),
        ("denoise=0-1 decode=2", {"attention": "ring"}, "auto, ulysses, pipesp, got 'ring'"),
    ],
)
def test_what_cannot_be(groups: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Placement.of(ranks=3, **read_groups(groups), **fields, coprocess=True)


def test_it_is_written_to_json() -> None:
    where = Placement(ranks=2, denoise=(0,), decode=(1,), coprocess=True)
    assert read_placement(where.to_json()) == where


def test_messages_come_as_they_were() -> None:
    message = Message(kind=1, batch=2, head_dim=16, dtype=1, steps=9, work=(4, 0, 7))
    assert Message.unpack(message.pack(torch.device("cpu"))) == message
