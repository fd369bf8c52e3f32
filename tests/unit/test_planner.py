"""The planner: compared with a rehearsal of the program and with cases by hand, and general properties."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

import paradit.planner.step as step_module
from messages import says
from paradit.attention.registry import Choice
from paradit.attention.timing import layer
from paradit.attention.timing.windows import window_layer
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.options import to_argv
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.shares import Shares
from paradit.distributed.timing import Link as RehearsedLink
from paradit.models.published import published_models, published_spec
from paradit.planner.discrete_events import Compute, Message, Post, Step, Wait, simulate
from paradit.planner.explain import compared, misfits, reasons
from paradit.planner.hardware import Cluster, find_cluster
from paradit.planner.search import GOALS, Plan, all_candidates, find_plans, with_tiles
from paradit.planner.simulate import Candidate, Simulated, Simulator
from paradit.planner.step import forward
from paradit.trace.summary import read_trace, summarize
from planner_cases import DEVICE, MACHINE, branch, cluster, run, simulator
from rehearsed_attention import (
    DEPTH,
    FINISH,
    HEADS,
    LAYERS,
    PROJECTION,
    ROW,
    SHARES,
    TOKENS,
    WORK,
    rehearsed,
    rehearsed_otherwise,
)

ULYSSES = Choice.of("ulysses")
FORMS = [
    ULYSSES,
    Choice.of("pipesp", chunks=3),
    Choice.of("pipesp-paper"),
    Choice.of("ring"),
    Choice.of("usp"),
]


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("link", [(0.0, 2.0**-20), (0.25, 2.0**-12), (0.5, 2.0**-10)])
def test_a_step_is_the_program_rehearsed(link: tuple[float, float], chunks: int, interleave: bool) -> None:
    latency, seconds_per_byte = link
    on = cluster(2, latency, 1 / seconds_per_byte)
    form = Choice.of("pipesp", chunks=chunks, interleave=interleave)
    streams = 2 if interleave else 1
    one = branch(on, SHARES, batch=2 // streams, part=1 / streams)
    simulation = forward([(one, layer(one, form))], LAYERS, streams, form.lag)
    assert simulation.seconds == pytest.approx(rehearsed(RehearsedLink(*link), chunks, interleave), rel=1e-12)
    assert simulation.computing == pytest.approx([WORK, WORK])


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("attention", ["ring", "pipesp-paper", "windowed"])
@pytest.mark.parametrize("link", [(0.0, 2.0**-20), (0.25, 2.0**-12), (0.5, 2.0**-10)])
def test_so_is_a_step_of_the_other_forms(
    link: tuple[float, float], attention: str, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency, seconds_per_byte = link
    form = Choice.of(attention, interleave=streams == 2)
    on = cluster(2, latency, 1 / seconds_per_byte)
    one = branch(on, SHARES, batch=2 // streams, part=1 / streams)
    program = window_layer(one) if attention == "windowed" else layer(one, form)
    simulation = forward([(one, program)], LAYERS, streams)
    expected = rehearsed_otherwise(RehearsedLink(*link), form, streams, monkeypatch)
    assert simulation.seconds == pytest.approx(expected, rel=1e-12)
    assert simulation.computing == pytest.approx([WORK, WORK])


@pytest.mark.parametrize("link", [(0.0, 2.0**-20), (0.25, 2.0**-12), (0.5, 2.0**-10)])
def test_so_is_a_step_of_usp(link: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    latency, seconds_per_byte = link
    on, form = cluster(4, latency, 1 / seconds_per_byte), Choice.of("usp")
    one = branch(on, Shares.equal(TOKENS, HEADS, 4))
    simulation = forward([(one, layer(one, form))], LAYERS)
    expected = rehearsed_otherwise(RehearsedLink(*link), form, 1, monkeypatch)
    assert simulation.seconds == pytest.approx(expected, rel=1e-12)


def test_what_a_shared_host_does_to_all_at_once() -> None:
    # All messages of eight ranks go through one resource, so they take as long as one after the other.
    on = cluster(8, latency=0.0, bandwidth=1e30, shared=1e6)
    one = branch(on, Shares.equal(TOKENS, HEADS, 8))
    simulation = forward([(one, layer(one, Choice.of("pipesp-paper")))], LAYERS)
    sent = LAYERS * 4 * 2 * TOKENS * HEADS * DEPTH * 4 * 7 / 8
    assert sent / 1e6 <= simulation.seconds <= sent / 1e6 + max(simulation.computing)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_folded_layers_are_played_layers(form: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    on = cluster(4, latency=0.01, bandwidth=2e4, shared=5e4)
    shares = Shares.equal(TOKENS, HEADS, 4, num_replicated=5)
    for streams in (1, 2):
        one = branch(on, shares)
        program = layer(one, form)
        folded = forward([(one, program)], 20, streams)
        with monkeypatch.context() as patch:
            patch.setattr(step_module, "SIMULATED_LAYERS", 20)
            whole = forward([(one, program)], 20, streams)
        assert folded.seconds == pytest.approx(whole.seconds, rel=1e-3)
        assert folded.computing == pytest.approx(whole.computing)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_shares_a_resource_never_overlaps(form: Choice) -> None:
    one = branch(cluster(4, latency=0.01, bandwidth=2e4, shared=5e4), Shares.equal(TOKENS, HEADS, 4))
    program = layer(one, form)
    # Every layer of every rank needs its projections, its rows and its finish.
    simulation = simulate([[step for key in range(3) for step in program(rank, key)] for rank in range(4)])
    assert sum(simulation.computing) == pytest.approx(
        3 * (4 * (3 * PROJECTION + FINISH) + 2 * ROW * TOKENS * HEADS)
    )
    uses = defaultdict(list)
    for use in simulation.uses:
        uses[use.resource].append((use.begin, use.end))
    assert len(uses) > 4
    for spans in uses.values():
        for before, after in pairwise(sorted(spans)):
            assert after[0] >= before[1] - 1e-12


def test_events_by_hand() -> None:
    message = Message("m", (0, 1), {"port": 2.0}, 0.5)
    first: list[Step] = [Compute("a", 1.0), Post("m", message), Compute("b", 0.25), Wait("m")]
    second: list[Step] = [Compute("a", 3.0), Post("m", message)]
    simulation = simulate([first, second])
    # The message starts when the second rank has posted it, at 3.
    assert list(simulation.ends) == [5.5, 3.0]
    with pytest.raises(RuntimeError, match="wait"):
        simulate([[Wait("nothing")]])


def test_posting_takes_as_long_as_was_computed_at_most() -> None:
    message = Message("any", (0,), {"port": 1.0}, 0.0, posting=2.0)
    program: list[Step] = [
        Compute("work", 1.0),
        Post(1, message),
        Post(2, message),
        Compute("work", 5.0),
        Post(3, message),
    ]
    # Work 1, posting 1, none for the second rank; 5 and 2; then the port is free.
    assert simulate([[*program, Wait(3)]]).ends == [10.0]
    # No message begins if nothing travels.
    slow = replace(cluster(2), device=replace(DEVICE, posting=1.0))
    shares = Shares.equal(TOKENS, HEADS, 2)
    for sent, taken in ((0.0, 0.0), (8.0, 1.0)):
        assert branch(slow, shares).message("any", (0, 1), [[0.0, sent], [sent, 0.0]]).posting == taken


def random_cases(number: int) -> list[tuple[Cluster, dict[str, Any]]]:
    draw = Random(0)
    found = []
    for _ in range(number):
        on = cluster(
            draw.choice([2, 3, 4, 8]),
            latency=10 ** draw.uniform(-6, -3),
            bandwidth=10 ** draw.uniform(9, 11.5),
            **({"shared": 10 ** draw.uniform(9, 11.5)} if draw.random() < 0.5 else {}),
        )
        size = {
            "width": 16 * draw.randint(10, 60),
            "height": 16 * draw.randint(10, 40),
            "num_frames": 4 * draw.randint(1, 20) + 1,
        }
        found.append((on, size))
    return found


@pytest.mark.parametrize("model", ["Wan2.1-T2V-1.3B-Diffusers", "HunyuanVideo"])
def test_more_bandwidth_is_never_slower(model: str) -> None:
    for on, size in random_cases(8):
        quick = replace(on.link, bandwidth=2 * on.link.bandwidth)
        quick = replace(quick, shared=2 * on.link.shared) if on.link.shared else quick
        one, other = (simulator(c, model, **size) for c in (on, replace(on, link=quick, network=quick)))
        for candidate, form in all_candidates(one, 3):
            before, after = (each.simulate(candidate, 3, form) for each in (one, other))
            assert after.seconds <= before.seconds * (1 + 1e-9), (on, size, candidate, form)
            assert after.latency <= before.latency * (1 + 1e-9), (on, size, candidate, form)


def test_the_best_is_behind_nothing_that_is_usual() -> None:
    for on, size in random_cases(6):
        one = simulator(on, **size)  # it keeps the steps that it has simulated for another goal
        for goal, measure in GOALS.items():
            plans = find_plans(one, 4, goal)
            best = measure(plans.best[0].simulated)
            usual = [plan for plan in plans.usual if plan.fits and not plan.simulated.candidate.offload]
            assert all(best <= measure(plan.simulated) for plan in usual), goal
            # The reasons agree: the best plan with another setting is not better.
            assert all("(-" not in line for line in reasons(plans, goal, str)), goal


STAGES_OF = {"encode_ranks", "denoise_ranks", "decode_ranks", "replicas", "decode_degree"}
MAY_DIFFER = {
    "method": {"method", "pipeline_degree", "attention", "choice", "interleave"},
    "stages": STAGES_OF,
    "co-processing": {"coprocess"},
    "guidance branches": {"cfg_degree", "pipeline_degree"},
    "a stage's tokens": {"pipeline_degree"},
    "attention": {"attention", "choice"},
    "interleaved": {"interleave"},
    "ranks that share a decode": {"decode_degree"},
}
"""Settings in which two plans that differ in one switch may differ, as its consequences, by switch."""


def whole_plan(one: Simulated) -> dict[str, object]:
    placement = one.candidate.placement
    flat = placement.flat()
    shared = ("ranks", "replicas", "decode_degree", "cfg_degree", "pipeline_degree")
    names = (*shared, "chunks", "mesh", "attention_backend")
    choice = {"attention": one.choice.name, "choice": one.choice.options, "interleave": one.choice.interleave}
    return {
        **{name: flat[name] for name in names},
        **{name: getattr(placement, name) for name in ("encode_ranks", "denoise_ranks", "decode_ranks")},
        **choice,
        **{name: value for name, value in vars(one.candidate).items() if name != "placement"},
    }


def test_a_plan_is_compared_with_plans_that_differ_in_one_setting() -> None:
    spec, shown = published_spec("Wan2.1-T2V-1.3B-Diffusers"), defaultdict(set)
    for frames, bandwidth in ((17, 1e9), (97, 1e11)):
        asked = Request.of(prompt="any", num_frames=frames, width=320, height=192, num_inference_steps=4)
        whole, blocks = (resolve(replace(asked, method=method), spec) for method in ("full", "dualparal"))
        on, long = cluster(4, bandwidth=bandwidth), blocks if frames > 81 else None
        one = Simulator(on, spec, whole, long=long)
        for goal in GOALS:
            plans = find_plans(one, 2, goal)
            best = whole_plan(plans.best[0].simulated)
            for switch, other in compared(plans, goal):
                different = {name for name, value in whole_plan(other).items() if value != best[name]}
                assert different
                assert different <= MAY_DIFFER[switch.name], (goal, switch.name)
                shown[goal].add(switch.name)
    assert all(len(shown[goal]) >= 3 for goal in GOALS)


def test_memory_grows_with_the_video() -> None:
    candidate = Candidate(placement=Placement(ranks=4, denoise=(0, 1, 2), decode=(3,)))
    sizes: list[dict[str, Any]] = [
        {"width": 480},
        {"width": 960},
        {"width": 960, "height": 576},
        {"num_frames": 81, "width": 960, "height": 576},
    ]
    found = [simulator(cluster(4), **size).simulate(candidate, 2, ULYSSES).memory for size in sizes]
    for before, after in pairwise(found):
        assert all(b <= a for b, a in zip(before, after, strict=True))


def test_a_helper_takes_work_and_never_costs_any() -> None:
    on = cluster(4, latency=0.0, bandwidth=1e30)
    placement = Placement(ranks=4, denoise=(0, 1, 2), decode=(3,))
    one = simulator(on)
    alone, helped = (
        one.simulate(Candidate(placement=placement, coprocess=c), 1, ULYSSES) for c in (False, True)
    )
    assert helped.latency < alone.latency
    # The gain is at most the helper's share of the attention: PipeDiT's equation 3.
    assert helped.step >= alone.step * 3 / 4
    slow = simulator(cluster(4, latency=1.0, bandwidth=1e3))
    alone, helped = (
        slow.simulate(Candidate(placement=placement, coprocess=c), 3, ULYSSES) for c in (False, True)
    )
    assert helped.seconds <= alone.seconds


def test_tiles_are_shared_by_ranks() -> None:
    alone, four = Placement(ranks=4), Placement(ranks=4, decode=(0, 1, 2, 3), encode=(0,), decode_degree=4)
    one = simulator(cluster(4, latency=0.0, bandwidth=1e30), width=832, height=480)
    whole, tiled, shared = (
        one.simulate(Candidate(placement=placement, tile=tile), 1, ULYSSES)
        for placement, tile in ((alone, None), (alone, 256), (four, 256))
    )
    # Tiles overlap, so they are more work; 15 on 4 ranks are not quite a quarter each.
    assert whole.stages["decode"] < tiled.stages["decode"] < 4 * shared.stages["decode"]
    assert shared.stages["decode"] < tiled.stages["decode"] / 3
    assert shared.memory[1] < tiled.memory[0] < whole.memory[0]
    slow = simulator(cluster(4, latency=0.0, bandwidth=1e6), width=832, height=480)
    found = slow.simulate(Candidate(placement=four, tile=256), 1, ULYSSES)
    # At least the samples of three quarters of the picture come to the first rank.
    assert found.stages["decode"] > 33 * 3 * 4 * 832 * 480 * 0.7 / 1e6


def test_smaller_tiles_where_a_decode_does_not_fit() -> None:
    one = simulator(cluster(2), width=1280, height=720)
    candidate = Candidate(placement=Placement(ranks=2, denoise=(0,), decode=(1,)))
    small = replace(DEVICE, memory=one.memory(candidate)[1] - 1)
    tight = replace(one, cluster=replace(one.cluster, device=small))
    tiled = with_tiles(tight, candidate)
    assert tiled is not None
    assert max(tight.memory(tiled)) <= small.memory
    plan = Plan(name="this", simulated=one.simulate(candidate, 1, ULYSSES), fits=False)
    (said,) = misfits([plan], tight, str)
    assert says(said, f"decode of 1280x720x33 .. decode tiles of {tiled.tile} (this)")


def test_replicas_share_the_host() -> None:
    def step(ranks: int, replicas: int) -> float:
        on = cluster(4, latency=0.0, bandwidth=1e30, shared=1e8)
        candidate = Candidate(placement=Placement(ranks=ranks, replicas=replicas))
        return simulator(on).simulate(candidate, 2, ULYSSES).step

    assert step(4, 2) > 1.5 * step(2, 1)


@pytest.mark.parametrize("model", published_models())
def test_published_models_are_planned(model: str) -> None:
    spec = published_spec(model)
    assert all(weights.parameters > 0 for weights in spec.weights)
    request = resolve(Request.of(prompt="any"), replace(spec, needs_image=False, needs_last_image=False))
    picture = "picture.png"  # not read
    request = replace(
        request,
        image=picture if spec.needs_image else None,
        last_image=picture if spec.needs_last_image else None,
    )
    simulated = Simulator(find_cluster("8xH100"), spec, request).simulate(
        Candidate(placement=Placement(ranks=8)), 2, ULYSSES
    )
    assert 0 < simulated.first_frame < simulated.latency < simulated.seconds


def test_notation() -> None:
    assert find_cluster("8xL40").name == "8xL40"
    two = find_cluster("2x8xh100")
    assert (two.ranks, two.between(0, 7).name, two.between(7, 8).name) == (16, "nvlink4", "infiniband-ndr")
    pairs = find_cluster("8xA6000")
    assert (pairs.between(0, 1).name, pairs.between(1, 2).name) == ("nvlink-bridge", "pcie4")
    for wrong, said in (("8xL4O", "L40"), ("0xL40", "1 to"), ("8x", "written"), ("9999x9999xL40", "1 to")):
        with pytest.raises(InputError, match=said):
            find_cluster(wrong)


def test_a_measured_machine(tmp_path: Path) -> None:
    path = tmp_path / "machine.toml"
    path.write_text(MACHINE)
    found = find_cluster(str(path))
    assert (found.ranks, found.device.efficiency["flash"], found.link.bandwidth) == (2, 0.4, 1e9)
    for broken, said in (
        ("ranks = 2", "devices"),
        ("[", "TOML"),
        (MACHINE.replace("multiprocessors = 1", ""), "multiprocessors"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=said):
            find_cluster(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        find_cluster(str(tmp_path / "other.toml"))


def test_the_command() -> None:
    small = ("--model", "wan2.1-t2v-1.3b-diffusers", "--size", "480x288", "--num-frames", "17")
    done = run(*small, "--gpus", "4xL40", "--num-prompts", "3")
    assert done.returncode == 0, done.stderr
    for part in (
        "one GPU",
        "plain Ulysses",
        "offloading",
        "4 replicas",
        "1. paradit generate --prompts-file",
    ):
        assert part in done.stdout
    done = run(*small, "--gpus", "4xL40", "--json", "--goal", "memory")
    found = json.loads(done.stdout)
    assert found["best"][0]["fits"]
    assert len(found["best"][0]["memory_bytes_by_rank"]) == len(found["best"][0]["idle_by_rank"]) <= 4


def test_the_command_has_pictures_and_loras(tmp_path: Path) -> None:
    Image.new("RGB", (832, 480)).save(tmp_path / "a.png")
    asked = ("--model", "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "--num-frames", "17", "--gpus", "2xH100")
    found = json.loads(run(*asked, "--image", str(tmp_path / "a.png"), "--fit", "stretch", "--json").stdout)
    given = f"--image {tmp_path / 'a.png'} --last-image IMAGE --fit stretch"
    assert all(given in plan["command"] for plan in found["best"] if plan["command"])
    loras = ["a.safetensors@high", "a.safetensors=0.5@low"]
    assert to_argv({"lora": loras}) == ["--lora", loras[0], "--lora", loras[1]]


def test_a_long_video_is_planned_with_its_own_blocks() -> None:
    arguments = ("--model", "wan2.1-t2v-1.3b-diffusers", "--size", "480x288", "--gpus", "2xL40", "--duration")
    blocks = ("--block-frames", "8", "--context-frames", "3", "--left-context", "cache")
    usual, own = (json.loads(run(*arguments, "60s", "--json", *more).stdout) for more in ((), blocks))
    sizes = ("block_frames", "context_frames", "left_context")
    assert [usual[name] for name in sizes] == [13, 4, "latents"]
    assert [own[name] for name in sizes] == [8, 3, "cache"]
    for plan, shown in ((usual, False), (own, True)):
        best = plan["best"][0]
        assert (best["method"], " ".join(blocks) in best["command"]) == ("dualparal", shown)
    # The other left context for comparison: the cache computes less, and keeps more.
    (line,) = [line for line in usual["reasons"] if line.startswith("left context: latents; cache ")]
    assert "(-" in line
    (line,) = [line for line in own["reasons"] if line.startswith("left context: cache; latents ")]
    assert "(+" in line
    for more, said in (
        (("60s", "--left-context", "both"), "left_context must be latents or cache, got 'both'"),
        (
            ("60s", "--block-frames", "2", "--context-frames", "3"),
            "context_frames must be at most 2, the frames of a neighbouring block, got 3",
        ),
        (("2s", "--block-frames", "8"), "longer than the 81 frames"),
    ):
        done = run(*arguments, *more)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert said in done.stderr


@pytest.mark.parametrize("method", ["full", "dualparal"])
def test_a_plan_as_a_trace_and_a_picture(method: str, tmp_path: Path) -> None:
    trace, plot = tmp_path / "plan.json", tmp_path / "plan.png"
    long = ("--duration", "12s") if method == "dualparal" else ("--num-frames", "17", "--num-prompts", "3")
    arguments = ("--model", "wan2.1-t2v-1.3b-diffusers", "--size", "480x288", "--gpus", "4xL40", *long)
    done = run(*arguments, "--json", "--trace", str(trace), "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout)["best"][0]
    assert best["method"] == method
    by_rank = read_trace(trace)
    assert sorted(by_rank) == list(range(len(best["memory_bytes_by_rank"])))
    spans = [span for spans in by_rank.values() for span in spans]
    assert max(span.end for span in spans) / 1e9 == pytest.approx(best["seconds"], rel=1e-6)
    requests = 1 if method == "dualparal" else 3
    for stage in ("encode", "decode"):
        numbers = {span.about["request"] for span in spans if span.name == stage}
        assert numbers == set(range(requests))
    for one in summarize(by_rank):
        assert one.busy >= 0
        assert one.idle > -1e-6
    with Image.open(plot) as picture:
        assert picture.size[0] == 1600
    again = run(*arguments, "--plot", str(plot))
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "HunyuanVideo", "--gpus", "8xL40", "--plot", "a.jpg"), ".png"),
        (("--model", "HunyuanVideo", "--gpus", "8xL41"), "L40"),
        (("--model", "HunyuanVideo", "--gpus", "8xL40", "--goal", "fun"), "latency"),
        (("--model", "HunyuanVideo", "--gpus", "8xL40", "--duration", "long"), "60s"),
        (("--model", "HunyuanVideo", "--gpus", "8xL40", "--num-prompts", "0"), "num_prompts"),
        (("--model", "HunyuanVideo", "--gpus", "8xL40", "--size", "500x300"), "nearest"),
        (("--model", "nothing-here", "--gpus", "8xL40"), "nothing-here"),
    ],
)
def test_bad_input_gets_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_what_does_not_fit_is_said() -> None:
    done = run("--model", "Wan2.2-T2V-A14B-Diffusers", "--gpus", "4xRTX4090")
    assert done.returncode == 0
    assert "does not fit" in done.stdout
    assert "weights" in done.stdout
