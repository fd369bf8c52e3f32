"""Long videos in blocks, simulated: against the schedule's own count, and what must hold anywhere."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from paradit.models.published import published_spec
from paradit.models.spec import stage_of
from paradit.placement import Form, Placement
from paradit.planner.hardware import Cluster
from paradit.planner.long import LongVideo
from paradit.planner.search import GOALS, find_plans
from paradit.planner.simulate import Simulator, Way
from paradit.requests import Request, resolve
from paradit.scheduling.balance import play
from paradit.scheduling.layer_pipeline import duration
from paradit.scheduling.memory import memory_by_rank
from test_planner import cluster

SPEC = published_spec("Wan2.1-T2V-1.3B-Diffusers")
FREE = {"latency": 0.0, "bandwidth": 1e30}


def request(latent_frames: int, steps: int = 6, **asked: int) -> Request:
    asked = {"width": 160, "height": 96, "block_frames": 5, "context_frames": 2} | asked
    made = Request(
        prompt="any",
        num_frames=4 * latent_frames - 3,
        num_inference_steps=steps,
        method="dualparal",
        **asked,
    )
    return resolve(made, SPEC)


def video(on: Cluster, asked: Request, placement: Placement | None = None, decode: float = 0.0) -> LongVideo:
    placement = placement or Placement(ranks=on.ranks)
    stages = len(placement.denoise_ranks) // placement.cfg_degree
    placement = replace(placement, pipeline_degree=stages)
    return LongVideo(cluster=on, spec=SPEC, request=asked, placement=placement, dtype="bf16", decode=decode)


# 30 layers: alike on as many ranks as divide them, and on four not.
@pytest.mark.parametrize("ranks", [1, 2, 4, 6])
@pytest.mark.parametrize(("blocks", "steps"), [(9, 6), (3, 6), (9, 2)])
def test_without_messages_it_takes_what_the_schedule_counts(ranks: int, blocks: int, steps: int) -> None:
    one = video(cluster(ranks, **FREE), request(5 * blocks, steps, context_frames=0))
    step = next(one.queue.steps())
    costs = [2 * one.step_seconds(place, step) for place in range(ranks)]
    assert one.run().seconds == pytest.approx(duration(one.queue, costs, parts=2), rel=1e-9)


@pytest.mark.parametrize(("stages", "blocks", "steps"), [(1, 3, 2), (2, 9, 6), (3, 3, 6), (6, 9, 2)])
def test_branches_on_different_ranks_are_two_pipelines(stages: int, blocks: int, steps: int) -> None:
    """Where messages are free; and each hidden state still travels once, each prediction comes from two."""
    placement = Placement(ranks=2 * stages, cfg_degree=2)
    one = video(cluster(2 * stages, **FREE), request(5 * blocks, steps, context_frames=0), placement)
    step = next(one.queue.steps())
    costs = [one.step_seconds(stage, step) for stage in range(stages)]
    assert one.run().seconds == pytest.approx(duration(one.queue, costs), rel=1e-9)
    sent = defaultdict(int)
    for one_sent in one.played().sent:
        sent[one_sent.message.name] += 1
    steps = blocks * steps
    predictions = 2 * steps if stages > 1 else steps  # the leader's own does not travel
    found = {"latents": steps, "hidden states": 2 * (stages - 1) * steps, "prediction": predictions}
    assert sent == {name: number for name, number in found.items() if number}


@pytest.mark.parametrize("placement", [Placement(ranks=3), Placement(ranks=3, denoise=(0, 1), decode=(2,))])
def test_folded_blocks_are_played_blocks(placement: Placement) -> None:
    one = video(cluster(3, bandwidth=3e8), request(5 * 23 + 2), placement, decode=0.2)
    run = one.run()
    whole = one.played()
    assert run.seconds == pytest.approx(whole.seconds, rel=1e-6)
    assert run.computing == pytest.approx(whole.computing, rel=1e-6)


def test_work_is_conserved_and_nothing_that_shares_a_resource_overlaps() -> None:
    on = cluster(4, latency=1e-4, bandwidth=1e9, shared=2e9)
    one = video(on, request(33), Placement(ranks=4, denoise=(0, 1, 2), decode=(3,)), decode=0.5)
    played = one.played()
    for place in range(3):
        work = sum(2 * one.step_seconds(place, step) for step in one.queue.steps())
        assert played.computing[place] == pytest.approx(work)
    assert played.computing[3] == pytest.approx(0.5)
    uses = defaultdict(list)
    for use in [*played.uses, *played.waits]:
        uses[use.resource].append((use.begin, use.end))
    assert len(uses) > 8
    for spans in uses.values():
        for before, after in pairwise(sorted(spans)):
            assert after[0] >= before[1] - 1e-12
    # Every hidden state, prediction and block travels once.
    sent = defaultdict(int)
    for one_sent in played.sent:
        sent[one_sent.message.name] += 1
    steps = len(list(one.queue.steps()))
    assert sent == {"hidden states": 2 * 2 * steps, "prediction": steps, "latents": 7}


def test_a_joint_model_s_text_travels_with_its_tokens() -> None:
    spec = published_spec("HunyuanVideo")
    sizes = {"num_frames": 33, "width": 160, "height": 96, "block_frames": 3, "context_frames": 0}
    asked = Request(prompt="any", num_inference_steps=3, method="dualparal", **sizes)
    one = LongVideo(
        cluster=cluster(2),
        spec=spec,
        request=resolve(asked, spec),
        placement=Placement(ranks=2, pipeline_degree=2),
        dtype="bf16",
        decode=0.0,
    )
    hops = [sent.message for sent in one.played().sent if sent.message.name == "hidden states"]
    assert len(hops) == 3 * 3  # one branch
    tokens = 3 * spec.tokens(1, 96, 160)
    assert {max(map(max, message.table)) for message in hops} == {
        2.0 * spec.transformers[0].width * (tokens + 256)
    }


def test_more_bandwidth_is_never_slower() -> None:
    draw = Random(1)
    for _ in range(12):
        ranks = draw.choice([2, 3, 5, 8])
        on = cluster(ranks, latency=10 ** draw.uniform(-6, -3), bandwidth=10 ** draw.uniform(8, 11))
        quick = replace(on.link, bandwidth=2 * on.link.bandwidth)
        asked = request(draw.randint(8, 60), draw.randint(2, 8), block_frames=draw.randint(3, 9))
        before, after = (video(c, asked).run() for c in (on, replace(on, link=quick, network=quick)))
        assert after.seconds <= before.seconds * (1 + 1e-9)
        assert after.first <= before.first * (1 + 1e-9)


def test_memory_does_not_grow_with_the_length() -> None:
    placement = Placement(ranks=3)

    def peaks(latent_frames: int) -> list[int]:
        return [parts["peak"] for parts in memory_by_rank(placement, request(latent_frames), SPEC, 2)]

    assert peaks(20) <= peaks(30) <= peaks(100) == peaks(1000)
    by_rank = memory_by_rank(placement, request(100), SPEC, 2)
    transformer = 2 * sum(w.parameters for w in SPEC.weights if stage_of(w.component) == "denoise")
    # Each has its layers; the first one also the other stages.
    assert [parts["weights"] for parts in by_rank[1:]] == pytest.approx([transformer / 3] * 2)
    # Keys and values of two frames, of both branches, in a rank's ten layers.
    assert by_rank[1]["keys"] == 2 * 2 * 10 * 2 * SPEC.tokens(1, 96, 160) * 1536 * 2
    wider = memory_by_rank(placement, request(100, width=320), SPEC, 2)
    assert all(more["peak"] >= less["peak"] for more, less in zip(wider, by_rank, strict=True))


def test_replicas_make_a_video_each() -> None:
    on, asked = cluster(4), request(33)
    simulator = Simulator(on, SPEC, asked, long=asked)
    form = Form(attention="ulysses")
    one = simulator.simulate(Way(placement=Placement(ranks=2), method="dualparal"), 1, form)
    two = simulator.simulate(Way(placement=Placement(ranks=4, replicas=2), method="dualparal"), 2, form)
    assert two.seconds == pytest.approx(one.seconds, rel=1e-6)
    spans = play(Placement(ranks=4, replicas=2), 2, two.stages)
    assert {span.ranks for span in spans if span.stage == "denoise"} == {(0, 1), (2, 3)}


@pytest.mark.parametrize("goal", GOALS)
def test_the_best_is_behind_no_method(goal: str) -> None:
    asked = request(40, width=480, height=288)
    whole = resolve(replace(asked, method="full", block_frames=None, context_frames=None), SPEC)
    plans = find_plans(Simulator(cluster(4), SPEC, whole, long=asked), 2, goal)
    methods = {plan.simulated.way.method for plan in plans.tried}
    assert methods == {"full", "dualparal"}
    best = GOALS[goal](plans.best[0].simulated)
    assert all(best <= GOALS[goal](plan.simulated) for plan in plans.tried if plan.fits)
