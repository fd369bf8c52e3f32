"""Runs on a calibrated machine: ranks are used in the fastest way, and the video stays the same."""

from dataclasses import replace
from typing import Any

import pytest

from paradit.attention import registry
from paradit.config.methods.dualparal import num_slices, with_slices
from paradit.config.methods.method import check_placement, resolve
from paradit.config.placement import Placement
from paradit.config.requests import ENDLESS, Request
from paradit.engine.job import Job
from paradit.engine.planned_placement import Open, planned, planned_form
from paradit.models.published import published_spec
from paradit.planner.block_costs import pipelines
from paradit.planner.explain import SWITCHES
from paradit.planner.search import GOALS, all_candidates
from paradit.planner.simulate import Candidate, Simulator
from paradit.scheduling.balance import MARGIN, Choice, worth_taking
from planner_cases import cluster

SPEC = published_spec("Wan2.1-T2V-1.3B-Diffusers")
FORM = registry.Choice.plain()


def jobs(number: int = 1, **asked: Any) -> list[Job]:
    asked = {"width": 480, "height": 288, "num_frames": 33, "num_inference_steps": 6} | asked
    request = resolve(Request.of(prompt="any", dtype="bf16", **asked), SPEC)
    return [Job(request=request, output=f"{index}.mp4", latents=None, index=index) for index in range(number)]


LONG: dict[str, Any] = {"num_frames": 181, "method": "dualparal"}


def choice(made: list[Job], base: Placement, left: Open | None = None, **link: float) -> Choice:
    found = planned(made, SPEC, base, cluster(base.ranks, **link), left or Open())
    assert found is not None
    assert found == planned(made, SPEC, base, cluster(base.ranks, **link), left or Open())
    assert found.reason.startswith(next(iter(found.seconds)))
    for job in made:
        check_placement(found.placement, job.request, SPEC)
    return found


@pytest.mark.parametrize("bandwidth", [1e7, 1e9, 1e11])
def test_a_long_video_is_made_in_the_quickest_way(bandwidth: float) -> None:
    made, base = jobs(**LONG), Placement(ranks=6, compile=True)
    found = choice(made, base, bandwidth=bandwidth)
    simulator = Simulator(cluster(6, bandwidth=bandwidth), SPEC, made[0].request, long=made[0].request)
    every = [
        simulator.simulate(Candidate(placement=one, method="dualparal"), 1, FORM)
        for one in pipelines(simulator, 1)
        if one.ranks == 6
    ]
    best = min(every, key=GOALS["latency"])
    assert found.placement == replace(best.candidate.placement, compile=True)
    assert next(iter(found.seconds.values())) == best.seconds


def test_what_was_asked_for_stays() -> None:
    base = Placement(ranks=4)
    for cfg_degree in (1, 2):
        found = choice(jobs(**LONG), base, Open(cfg_degrees=(cfg_degree,)))
        assert found.placement.cfg_degree == cfg_degree
    found = choice(jobs(**LONG), with_slices(base, 2), bandwidth=1e12, latency=0.0)
    assert num_slices(found.placement) == 2
    many = jobs(8, **LONG)
    assert choice(many, base).placement.replicas > 1
    assert choice(many, base, Open(replicas=False)).placement.replicas == 1


def test_a_video_as_a_whole_is_made_in_the_quickest_way() -> None:
    for number in (1, 4):
        made, base = jobs(number), Placement(ranks=4)
        found = choice(made, base, bandwidth=3e9)
        simulator = Simulator(cluster(4, bandwidth=3e9), SPEC, made[0].request)
        goal = GOALS["latency" if number == 1 else "throughput"]
        known = [
            simulator.simulate(way, number, form)
            for way, form in all_candidates(simulator, number)
            if not way.coprocess and way.placement.decode_degree == 1 and form.name in ("ulysses", "pipesp")
        ]
        quickest = min(map(goal, known))[0]
        # A form that is only slightly faster than the simplest one is not chosen.
        assert quickest * (1 - 1e-9) <= next(iter(found.seconds.values())) <= quickest / (1 - MARGIN)
        assert found.placement.attention in ("ulysses", "pipesp")
        assert found.why
        assert all(line.partition(": ")[0] in [switch.name for switch in SWITCHES] for line in found.why)
    # Messages are very slow and there are enough prompts, so each rank makes its own video.
    assert choice(jobs(4), Placement(ranks=4), bandwidth=1e5).placement.replicas == 4


@pytest.mark.parametrize(
    "base",
    [
        Placement(ranks=4),
        Placement(ranks=4, attention="pipesp"),
        Placement.of(ranks=4, chunks=2),
        Placement(ranks=4, cfg_degree=2),
        Placement(ranks=4, replicas=2),
        Placement(ranks=4, interleave=False, compile=True),
        Placement(ranks=4, denoise=(0, 1), decode=(2, 3), coprocess=True),
    ],
)
@pytest.mark.parametrize("bandwidth", [1e9, 1e10, 1e12])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_what_is_open_of_the_form_is_planned(
    base: Placement, bandwidth: float, guidance_scale: float
) -> None:
    if base.cfg_degree == 2 and guidance_scale == 1:
        return
    made, on = jobs(guidance_scale=guidance_scale), cluster(4, bandwidth=bandwidth)
    found = planned_form(made, SPEC, base, on)
    branches = 1 if guidance_scale == 1 else 2
    open_forms = base.choices(SPEC.transformers[0].num_attention_heads, branches)
    if len(open_forms) == 1:
        assert found is None
        return
    assert found is not None
    check_placement(found.placement, made[0].request, SPEC)
    # Everything but the form is kept, and no form stays open.
    form = {name: getattr(base, name) for name in ("attention", "options", "interleave")}
    assert replace(found.placement, **form) == base
    (one,) = found.placement.choices(SPEC.transformers[0].num_attention_heads, branches)
    assert one in [form.simplest for form in open_forms]
    seconds = {}
    for other in open_forms:
        way = Candidate(placement=base, coprocess=base.coprocess)
        plain = other.simplest
        seconds[plain] = Simulator(on, SPEC, made[0].request).simulate(way, 1, plain).step
    plainest, quickest = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    assert one == (quickest if seconds[quickest] < (1 - MARGIN) * seconds[plainest] else plainest)
    assert next(iter(found.seconds.values())) == seconds[one]
    assert sorted(found.seconds.values()) == sorted(seconds.values())


def test_which_form_is_worth_taking() -> None:
    assert worth_taking([1.0]) == worth_taking([1.0, 2.0]) == worth_taking([1.0, 0.98, 0.975]) == 0
    assert worth_taking([1.0, 0.96, 0.95, 0.99]) == 2


@pytest.mark.parametrize(("size", "is_worth_it"), [((832, 480), True), ((480, 288), False)])
def test_co_processing_is_compared_where_nothing_is_said_of_it(
    size: tuple[int, int], is_worth_it: bool
) -> None:
    width, height = size
    made, on = jobs(1 if is_worth_it else 4, width=width, height=height), cluster(3)
    simulator, apart = Simulator(on, SPEC, made[0].request), Placement(ranks=3, denoise=(0, 1), decode=(2,))
    # A memory into which only ranks with fewer stages fit.
    limit = max(simulator.memory(Candidate(placement=apart)))
    small = replace(on, device=replace(on.device, memory=limit))
    found = planned(made, SPEC, Placement(ranks=3), small, Open(cfg_degrees=(1,)))
    without = planned(made, SPEC, Placement(ranks=3), small, Open(cfg_degrees=(1,), coprocess=False))
    assert found is not None
    assert without is not None
    assert found.placement.coprocess == is_worth_it
    assert not any("co-processing" in name for name in without.seconds)
    quickest = min(took for name, took in found.seconds.items() if "co-processing" in name)
    assert (quickest < (1 - MARGIN) * min(without.seconds.values())) == is_worth_it
    assert any(line.startswith(f"co-processing: {'on' if is_worth_it else 'off'}; ") for line in found.why)


def test_what_lacks_least_where_nothing_fits() -> None:
    made, base, on = jobs(**LONG), Placement(ranks=4), cluster(4)
    small = replace(on, device=replace(on.device, memory=1e9))
    found = planned(made, SPEC, base, small, Open())
    assert found is not None
    simulator = Simulator(small, SPEC, made[0].request, long=made[0].request)
    needed = [
        max(simulator.memory(Candidate(placement=one, method="dualparal")))
        for one in pipelines(simulator, 1)
        if one.ranks == 4
    ]
    assert max(simulator.memory(Candidate(placement=found.placement, method="dualparal"))) == min(needed)


def test_videos_without_end_and_others() -> None:
    assert choice(jobs(num_frames=ENDLESS, trim=True), Placement(ranks=4)).placement.ranks == 4
    made = jobs(num_frames=181, method="fifo")
    assert planned(made, SPEC, Placement(ranks=4), cluster(4), Open()) is None
