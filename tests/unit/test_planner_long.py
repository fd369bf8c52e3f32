"""Simulated long videos in blocks: compared with the schedule's own count, and general properties."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import pytest
from torch import Tensor

from paradit.attention.registry import Choice
from paradit.config.methods.dualparal import QueueRequest, with_slices
from paradit.config.methods.method import method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, ResolvedRequest
from paradit.distributed.world import World
from paradit.engine.job import Job
from paradit.engine.planned_placement import Open, planned
from paradit.models.published import published_spec
from paradit.models.spec import read_spec, stage_of
from paradit.planner.block_costs import pipelines
from paradit.planner.explain import compared
from paradit.planner.hardware import Cluster
from paradit.planner.long_video import LongVideo
from paradit.planner.search import GOALS, find_plans, with_tiles
from paradit.planner.settings import differs_only_in
from paradit.planner.simulate import Candidate, Simulated, Simulator
from paradit.planner.slice_step import kind_of
from paradit.planner.timeline import timeline
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.layer_split import divide_layers
from paradit.sampling.noise import PooledNoise
from paradit.scheduling.balance import simulate
from paradit.scheduling.block_queue import LEFT_SOURCES
from paradit.scheduling.layer_pipeline import PipelineGrid, duration
from paradit.testing import run_world
from planner_cases import cluster
from tiny import load_on_cpu, save_folder

SPEC = published_spec("Wan2.1-T2V-1.3B-Diffusers")
FREE = {"latency": 0.0, "bandwidth": 1e30}


def request(latent_frames: int, steps: int = 6, **asked: Any) -> QueueRequest:
    asked = {"width": 160, "height": 96, "block_frames": 5, "context_frames": 2} | asked
    made = Request.of(
        prompt="any",
        num_frames=4 * latent_frames - 3,
        num_inference_steps=steps,
        method="dualparal",
        **asked,
    )
    resolved = resolve(made, SPEC)
    assert isinstance(resolved, QueueRequest)
    return resolved


def video(
    on: Cluster,
    asked: QueueRequest,
    placement: Placement | None = None,
    *,
    sharers: int = 1,
    decode: float = 0.0,
) -> LongVideo:
    placement = placement or Placement(ranks=on.ranks)
    placement = with_slices(placement, placement.branch_ranks // sharers)
    return LongVideo(cluster=on, spec=SPEC, request=asked, placement=placement, dtype="bf16", decode=decode)


# 30 layers, which divide evenly among some numbers of ranks, but not among four.
@pytest.mark.parametrize("ranks", [1, 2, 4, 6])
@pytest.mark.parametrize(("blocks", "steps", "lag"), [(9, 6, 1), (3, 6, 1), (9, 2, 1), (40, 6, 4)])
def test_without_messages_it_takes_what_the_schedule_counts(
    ranks: int, blocks: int, steps: int, lag: int
) -> None:
    one = video(cluster(ranks, **FREE), request(5 * blocks, steps, context_frames=0, lag=lag))
    step = next(one.queue.steps())
    costs = [2 * one.step_seconds(place, kind_of(step)).seconds for place in range(ranks)]
    assert one.run().seconds == pytest.approx(duration(one.queue, costs, parts=2), rel=1e-9)


@pytest.mark.parametrize(("stages", "blocks", "steps"), [(1, 3, 2), (2, 9, 6), (3, 3, 6), (6, 9, 2)])
def test_branches_on_different_ranks_are_two_pipelines(stages: int, blocks: int, steps: int) -> None:
    """With free messages, branches are independent; hidden states travel once, and two predictions arrive."""
    placement = Placement(ranks=2 * stages, cfg_degree=2)
    one = video(cluster(2 * stages, **FREE), request(5 * blocks, steps, context_frames=0), placement)
    step = next(one.queue.steps())
    costs = [one.step_seconds(stage, kind_of(step)).seconds for stage in range(stages)]
    assert one.run().seconds == pytest.approx(duration(one.queue, costs), rel=1e-9)
    sent: defaultdict[Any, int] = defaultdict(int)
    for one_sent in one.simulation().sent:
        sent[one_sent.message.name] += 1
    steps = blocks * steps
    predictions = 2 * steps if stages > 1 else steps  # the leader's own does not travel
    found = {"latents": steps, "hidden states": 2 * (stages - 1) * steps, "prediction": predictions}
    assert sent == {name: number for name, number in found.items() if number}


@pytest.mark.parametrize("lag", [1, 4])
@pytest.mark.parametrize(
    ("placement", "sharers"),
    [
        (Placement(ranks=3), 1),
        (Placement(ranks=3, denoise=(0, 1), decode=(2,)), 1),
        (Placement(ranks=6), 3),
        (Placement(ranks=9, denoise=tuple(range(8)), decode=(8,), cfg_degree=2), 2),
    ],
)
def test_folded_blocks_are_played_blocks(placement: Placement, sharers: int, lag: int) -> None:
    on = cluster(placement.ranks, bandwidth=3e8, shared=1e9)
    one = video(on, request(5 * 32 + 2, lag=lag), placement, sharers=sharers, decode=0.2)
    run = one.run()
    whole = one.simulation()
    assert run.seconds == pytest.approx(whole.seconds, rel=1e-6)
    spokesmen = [rank for rank, computing in enumerate(whole.computing) if computing]
    assert len(spokesmen) == len(one.steps.groups) + (placement.decode is not None)
    computing = [run.computing[rank] for rank in spokesmen]
    assert computing == pytest.approx([whole.computing[rank] for rank in spokesmen], rel=1e-6)
    # The bound that is known without simulation is valid, and close if there is no lag.
    assert (0.5 if lag == 1 else 0.3) * run.seconds < one.least_seconds <= run.seconds


@pytest.mark.parametrize(("stages", "cfg_degree", "sharers"), [(1, 1, 4), (2, 1, 3), (3, 2, 2)])
def test_free_messages_make_a_team_one_rank(stages: int, cfg_degree: int, sharers: int) -> None:
    """With free messages, a team takes as long as its member with the most work."""
    ranks = stages * cfg_degree * sharers
    one = video(
        cluster(ranks, **FREE),
        request(45, context_frames=0),
        Placement(ranks=ranks, cfg_degree=cfg_degree),
        sharers=sharers,
    )
    kind = kind_of(next(one.queue.steps()))
    group = one.step_seconds(0, kind)
    assert group.exposed == pytest.approx(0.0, abs=1e-12)
    parts = 2 // cfg_degree
    costs = [parts * max(one.step_seconds(stage, kind).computing) for stage in range(stages)]
    assert one.run().seconds == pytest.approx(duration(one.queue, costs, parts=parts), rel=1e-9)
    # Some rank computes each part of the attention.
    shares = one.steps.shares(kind)
    assert sum(shares.work) == shares.num_tokens * shares.num_heads


@pytest.mark.parametrize("sharers", [1, 2])
def test_work_is_conserved_and_nothing_that_shares_a_resource_overlaps(sharers: int) -> None:
    on = cluster(3 * sharers + 1, latency=1e-4, bandwidth=1e9, shared=2e9)
    denoise = tuple(range(3 * sharers))
    placement = Placement(ranks=on.ranks, denoise=denoise, decode=(on.ranks - 1,))
    one = video(on, request(33), placement, sharers=sharers, decode=0.5)
    simulation = one.simulation()
    for stage in range(3):
        kinds = [kind_of(step) for step in one.queue.steps()]
        work = sum(2 * max(one.step_seconds(stage, kind).computing) for kind in kinds)
        assert simulation.computing[stage * sharers] == pytest.approx(work)
    assert simulation.computing[-1] == pytest.approx(0.5)
    uses = defaultdict(list)
    for use in [*simulation.uses, *simulation.waits]:
        uses[use.resource].append((use.begin, use.end))
    assert len(uses) > 8
    for spans in uses.values():
        for before, after in pairwise(sorted(spans)):
            assert after[0] >= before[1] - 1e-12
    # Every hidden state, prediction and block travels once.
    sent: defaultdict[Any, int] = defaultdict(int)
    for one_sent in simulation.sent:
        sent[one_sent.message.name] += 1
    steps = len(list(one.queue.steps()))
    expected = {"hidden states": 2 * 2 * steps, "prediction": steps, "latents": 7}
    if sharers > 1:  # the first rank's latents also go to those that share tokens with it
        expected |= {"exchanges": 3 * 2 * steps, "latents": 7 + steps}
    assert sent == expected


def test_a_joint_model_s_text_travels_with_its_tokens() -> None:
    spec = published_spec("HunyuanVideo")
    sizes = {"num_frames": 33, "width": 160, "height": 96, "block_frames": 3, "context_frames": 0}
    asked = Request.of(prompt="any", num_inference_steps=3, method="dualparal", **sizes)
    resolved = resolve(asked, spec)
    assert isinstance(resolved, QueueRequest)
    one = LongVideo(
        cluster=cluster(2),
        spec=spec,
        request=resolved,
        placement=Placement.of(ranks=2, pipeline_degree=2),
        dtype="bf16",
        decode=0.0,
    )
    hops = [sent.message for sent in one.simulation().sent if sent.message.name == "hidden states"]
    assert len(hops) == 3 * 3  # one branch
    tokens = 3 * spec.tokens(1, 96, 160)
    assert {max(map(max, message.table)) for message in hops} == {
        2.0 * spec.transformers[0].width * (tokens + 256)
    }


def test_more_bandwidth_is_never_slower() -> None:
    draw = Random(1)
    for _ in range(24):
        stages, cfg_degree, sharers = draw.choice([2, 3, 5]), draw.choice([1, 2]), draw.choice([1, 2, 3])
        placement = Placement(ranks=stages * cfg_degree * sharers, cfg_degree=cfg_degree)
        shared = {"shared": 10 ** draw.uniform(8, 11)} if draw.random() < 0.5 else {}
        latency, bandwidth = 10 ** draw.uniform(-6, -3), 10 ** draw.uniform(8, 11)
        on = cluster(placement.ranks, latency, bandwidth, **shared)
        quick = replace(on.link, bandwidth=2 * bandwidth)
        quick = replace(quick, shared=2 * on.link.shared) if on.link.shared else quick
        asked = request(draw.randint(8, 60), draw.randint(2, 8), block_frames=draw.randint(3, 9))
        before, after = (
            video(c, asked, placement, sharers=sharers).run()
            for c in (on, replace(on, link=quick, network=quick))
        )
        assert after.seconds <= before.seconds * (1 + 1e-9)
        assert after.first <= before.first * (1 + 1e-9)


def by_rank_of(placement: Placement, asked: ResolvedRequest) -> list[dict[str, int]]:
    return method_of(asked).memory_by_rank(placement, asked, SPEC, 2)


def test_memory_does_not_grow_with_the_length() -> None:
    placement = Placement(ranks=3)

    def peaks(latent_frames: int) -> list[int]:
        return [parts["peak"] for parts in by_rank_of(placement, request(latent_frames))]

    assert peaks(20) <= peaks(30) <= peaks(100) == peaks(1000)
    by_rank = by_rank_of(placement, request(100))
    transformer = 2 * sum(w.parameters for w in SPEC.weights if stage_of(w.component) == "denoise")
    # Each rank has its layers, and the first rank also the other stages.
    assert [parts["weights"] for parts in by_rank[1:]] == pytest.approx([transformer / 3] * 2)
    # Keys and values of two frames, of both branches, in a rank's ten layers.
    assert by_rank[1]["keys"] == 2 * 2 * 10 * 2 * SPEC.tokens(1, 96, 160) * 1536 * 2
    # With left contexts from the cache, also those of the 6 blocks in the queue and of the last finished one.
    kept = by_rank_of(placement, request(100, left_context="cache"))
    assert kept[1]["keys"] == 8 * by_rank[1]["keys"]
    # With a lag of 2, the queue has only 3 blocks.
    fewer = by_rank_of(placement, request(100, left_context="cache", lag=2))
    assert fewer[1]["keys"] == 5 * by_rank[1]["keys"]
    # Five tensors of each of these blocks, one of the block that joins, two of the block that is computed.
    frame = 4 * prod(SPEC.vae.latent_shape(1, 96, 160))
    assert kept[0]["latents"] == (7 * 5 + 1 + 2) * 5 * frame
    assert fewer[0]["latents"] == (4 * 5 + 1 + 2) * 5 * frame
    assert kept[1]["latents"] == 0
    wider = by_rank_of(placement, request(100, width=320))
    assert all(more["peak"] >= less["peak"] for more, less in zip(wider, by_rank, strict=True))


@pytest.mark.parametrize("latent_frames", [33, 400])
def test_replicas_make_a_video_each(latent_frames: int) -> None:
    on, asked = cluster(4), request(latent_frames)
    simulator = Simulator(on, SPEC, asked, long=asked)
    form = Choice.of("ulysses")
    one = simulator.simulate(Candidate(placement=Placement(ranks=2), method="dualparal"), 1, form)
    two = simulator.simulate(Candidate(placement=Placement(ranks=4, replicas=2), method="dualparal"), 2, form)
    assert two.seconds == pytest.approx(one.seconds, rel=1e-6)
    spans = simulate(Placement(ranks=4, replicas=2), 2, two.stages)
    assert {span.ranks for span in spans if span.stage == "denoise"} == {(0, 1), (2, 3)}


def test_a_timeline_has_every_rank_of_a_team() -> None:
    on, asked = cluster(5), request(20, 3)
    simulator = Simulator(on, SPEC, asked, long=asked)
    placement = Placement.of(ranks=5, denoise=(0, 1, 2, 3), decode=(4,), pipeline_degree=2)
    candidate = Candidate(placement=placement, method="dualparal")
    simulated = simulator.simulate(candidate, 1, Choice.of("ulysses"))
    by_rank = timeline(simulator, simulated, 1)
    steps = [[one for one in by_rank[rank] if one.name.startswith("block ")] for rank in range(4)]
    assert [len(found) for found in steps] == [4 * 3 * 2] * 4  # for two branches
    assert steps[0] == steps[1] != steps[2] == steps[3]
    sent = [sum(one.about.get("sent", 0) for one in by_rank[rank]) for rank in range(5)]
    assert min(sent[:4]) > 0 == sent[4]


def test_the_best_is_behind_no_method() -> None:
    asked = request(40, width=480, height=288)
    names = "block_frames", "context_frames", "lag", "left_level", "left_context", "context_timesteps"
    nothing = dict.fromkeys(names)
    whole = resolve(asked.asked(method="full", **nothing), SPEC)
    one = Simulator(cluster(4), SPEC, whole, long=asked)
    for goal, measure in GOALS.items():
        plans = find_plans(one, 2, goal)
        methods = {plan.simulated.candidate.method for plan in plans.tried}
        assert methods == {"full", "dualparal"}
        best = measure(plans.best[0].simulated)
        assert all(best <= measure(plan.simulated) for plan in plans.tried if plan.fits), goal


@pytest.mark.parametrize("part", [1.0, 0.3, 0.0])
def test_ways_that_are_not_played_could_not_have_been_the_best(part: float) -> None:
    """Candidates that are not simulated could not be best, neither overall nor for their setting.

    This holds whether all fit into memory, as they are or in tiles, or few of them, or none.
    """
    asked = request(60, width=480, height=288)
    on = cluster(6, bandwidth=2e9)
    roomy = Simulator(on, SPEC, asked, long=asked)
    candidates = [Candidate(placement=one, method="dualparal") for one in pipelines(roomy, 2)]
    needed = sorted(max(roomy.memory(candidate)) for candidate in candidates)
    memory = needed[round(part * (len(needed) - 1))] if part else needed[0] / 2
    simulator = replace(roomy, cluster=replace(on, device=replace(on.device, memory=memory)))
    tiled = [
        candidate if simulator.fits(candidate) else with_tiles(simulator, candidate) or candidate
        for candidate in candidates
    ]
    fitting = [candidate for candidate in tiled if simulator.fits(candidate)] or tiled
    every = [simulator.simulate(candidate, 2, Choice.of("ulysses")) for candidate in fitting]
    for goal, measure in GOALS.items():
        plans = find_plans(simulator, 2, goal)
        assert len(plans.tried) < len(candidates)
        assert plans.best[0].fits == bool(part)
        simulation = [plan.simulated for plan in plans.tried if plan.fits == plans.best[0].fits]
        assert measure(plans.best[0].simulated) == min(map(measure, every)), goal
        if plans.best[0].fits:
            assert best_by_kind(every, goal) == best_by_kind(simulation, goal)
            # The best plan is compared with the best of those that differ from it in one setting only.
            best = plans.best[0].simulated
            for switch, other in compared(plans, goal):
                alike = [
                    one
                    for one in every
                    if differs_only_in(
                        switch.name, (best.candidate, best.choice), (one.candidate, one.choice)
                    )
                    and switch.of(one) != switch.of(best)
                ]
                assert measure(other) == min(map(measure, alike)), (goal, switch.name)
    for one in every:
        least = one.candidate.cost_model.least(simulator, one.candidate, 2)
        assert least.latency <= one.latency * (1 + 1e-9)
        assert least.seconds <= one.seconds * (1 + 1e-9)


def best_by_kind(plans: list[Simulated], goal: str) -> dict[str, tuple[float, ...]]:
    kinds: dict[str, tuple[float, ...]] = {}
    for one in plans:
        kind, took = one.candidate.kind, GOALS[goal](one)
        kinds[kind] = min(took, kinds.get(kind, took))
    return kinds


def test_a_left_context_from_the_cache_is_not_computed() -> None:
    for sharers in (1, 2):
        made = [video(cluster(2), request(60, left_context=left), sharers=sharers) for left in LEFT_SOURCES]
        usual = [max(map(kind_of, one.queue.steps()), key=lambda kind: kind[3]) for one in made]
        assert [(kind[:3], kind[3]) for kind in usual] == [((5, 2, 0), 9), ((5, 0, 0), 9)]
        computed, kept = (one.run() for one in made)
        # Five frames instead of seven, which read the same keys.
        assert 5 / 7 * computed.seconds * 0.9 < kept.seconds < computed.seconds
        assert made[1].least_seconds <= kept.seconds


def test_a_run_is_planned_with_its_own_blocks() -> None:
    def quickest(**asked: Any) -> float:
        jobs = [Job(request=request(60, **asked), output="any.mp4", latents=None)]
        choice = planned(jobs, SPEC, Placement(ranks=2), cluster(2), Open())
        assert choice is not None
        return min(choice.seconds.values())

    usual = quickest()
    assert quickest(left_context="cache") < usual
    assert quickest(context_frames=0) < usual < quickest(block_frames=3)


GRIDS = [
    PipelineGrid(2, 1, 2),
    PipelineGrid(1, 2, 2),
    PipelineGrid(1, 1, 4),
    PipelineGrid(2, 2),
    PipelineGrid(4),
]
CASES = [(grid, "latents") for grid in GRIDS] + [(grid, "cache") for grid in (GRIDS[0], GRIDS[2], GRIDS[4])]


def small_video(folder: Path, grid: PipelineGrid, left_context: str) -> LongVideo:
    """Return a video of five blocks, with 12 tokens per frame; the last block has one frame.

    The model's three heads do not divide among the ranks.
    """
    asked = Request.of(
        prompt="any",
        width=64,
        height=48,
        num_frames=33,
        num_inference_steps=3,
        guidance_scale=3.0,
        method="dualparal",
        block_frames=2,
        context_frames=1,
        left_context=left_context,
    )
    spec = read_spec(folder)
    resolved = resolve(asked, spec)
    assert isinstance(resolved, QueueRequest)
    return LongVideo(
        cluster=cluster(4),
        spec=spec,
        request=resolved,
        placement=Placement.of(ranks=4, cfg_degree=grid.cfg_degree, pipeline_degree=grid.num_slices),
        dtype="fp32",
        decode=0.1,
    )


def bytes_sent(world: World, folder: Path) -> list[int]:
    """Return the number of bytes that this rank sends in a real run, for each case."""
    found, sent, send = [], 0, World.send

    def counting(self: World, tensor: Tensor, rank: int) -> Any:
        nonlocal sent
        sent += tensor.nbytes
        return send(self, tensor, rank)

    World.send = counting  # type: ignore[method-assign]
    for grid, left_context in CASES:
        spec, video, sent = read_spec(folder), small_video(folder, grid, left_context), 0
        queue, request = video.queue, video.request
        model = load_on_cpu(folder)
        prompts = tuple(model.encode_prompt(text) for text in ("a red circle", "blurry"))
        share = divide_layers(model, world, None, grid)
        noise = PooledNoise((spec.vae.z_dim, 6, 8), 3, queue.block_frames, queue.context_frames)
        pipeline = BlockPipeline(model, queue, prompts, noise, (6, 8), request=request, share=share)
        assert len(list(pipeline.blocks())) == (5 if world.rank == 0 else 0)
        found.append(sent + (share.sharing.transport.bytes_sent if share.sharing.transport else 0))
    return found


def test_bytes_are_those_of_a_real_run(tmp_path: Path) -> None:
    """Simulated messages (latents, exchanges, hidden states, predictions) have a real run's bytes by rank."""
    folder = save_folder("wan21", tmp_path, heads=3, layers=5)
    by_rank = run_world(bytes_sent, 4, folder, timeout=240)
    for number, (grid, left_context) in enumerate(CASES):
        simulated = [0.0] * 4
        for one in small_video(folder, grid, left_context).simulation().sent:
            for rank, row in zip(one.message.ranks, one.message.table, strict=True):
                simulated[rank] += sum(row)
        assert simulated == [sent[number] for sent in by_rank], (grid, left_context)


def test_each_step_has_its_own_number_of_branches() -> None:
    """Only the first expert has guidance, so a rank computes two passes in its steps, and one in others."""
    spec = published_spec("Wan2.2-T2V-A14B-Diffusers")
    asked = Request.of(
        prompt="any",
        **{"width": 160, "height": 96, "num_frames": 81, "num_inference_steps": 6, "method": "dualparal"},
        **{"block_frames": 7, "context_frames": 0, "guidance_scale": 3.0, "expert_step": 2},
    )

    def run(second: float) -> tuple[float, float, int]:
        resolved = resolve(replace(asked, guidance_scale_2=second), spec)
        assert isinstance(resolved, QueueRequest)
        placement = with_slices(Placement(ranks=2), 2)
        made = LongVideo(
            cluster=cluster(2, **FREE),
            spec=spec,
            request=resolved,
            placement=placement,
            dtype="bf16",
            decode=0.0,
        )
        sent = [one.message.name for one in made.simulation().sent]
        return sum(made.run().computing), made.least_seconds, sent.count("hidden states")

    (both, both_least, hops), (one, one_least, fewer) = run(3.0), run(1.0)
    assert (hops, fewer) == (3 * 12, 3 * 8)
    assert one / both == pytest.approx(8 / 12)
    assert one_least / both_least == pytest.approx(8 / 12)
