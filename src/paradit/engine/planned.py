"""How a run uses its ranks where this machine is calibrated: as the planner thinks quickest. Torch-free.

It is decided once, by the process that starts the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from paradit.engine.job import Job
from paradit.errors import InputError
from paradit.models.spec import ModelSpec
from paradit.placement import Placement
from paradit.planner.hardware import Cluster
from paradit.planner.search import GOALS, pipelines, play_long
from paradit.planner.simulate import Simulated, Simulator, Way
from paradit.requests import Request
from paradit.scheduling.balance import Choice, name_of, ways
from paradit.scheduling.layer_pipeline import MANY_BLOCKS

SHOWN = 3
"""Other ways that are named with what they would take."""


@dataclass(frozen=True, kw_only=True)
class Open:
    """What a user has left open."""

    cfg_degrees: Sequence[int] = (1, 2)
    replicas: bool = True
    """Whether ranks may form replicas."""


def largest(jobs: list[Job], spec: ModelSpec) -> Request:
    """The resolved request with the most work, which stands for all."""

    def work(request: Request) -> int:
        assert request.num_frames and request.height and request.width and request.num_inference_steps
        tokens = spec.tokens(request.num_frames, request.height, request.width)
        return tokens * request.num_inference_steps

    return max((job.request for job in jobs), key=work)


def planned(jobs: list[Job], spec: ModelSpec, base: Placement, cluster: Cluster, left: Open) -> Choice | None:
    """The quickest way of using the ranks of `base` that fits, else the one that needs least memory.

    base: what is as it is asked for, all stages together. None for methods that the planner does not know.
    """
    request = largest(jobs, spec)
    if request.method not in ("full", "dualparal"):
        return None
    if request.endless:
        assert request.block_frames
        frames = MANY_BLOCKS * request.block_frames * spec.vae.temporal_compression
        request = replace(request, num_frames=frames, trim=True)
    dtype = request.dtype or ("bf16" if cluster.device.ahead else "fp32")  # GPUs run ahead of Python
    goal, long = "throughput" if len(jobs) > 1 else "latency", request.method == "dualparal"
    simulator = Simulator(cluster, spec, request, dtype, request if long else None)
    find = _in_blocks if long else _as_a_whole
    found = list(dict.fromkeys(find(simulator, base, len(jobs), left)))
    fitting = [way for way in found if simulator.fits(way)]
    if not fitting:
        goal, fitting = "memory", found
    if long:
        simulated = list(play_long(simulator, fitting, len(jobs), goal))
    else:
        simulated = [_with_best_form(simulator, way, len(jobs), goal) for way in fitting]
    if not simulated:
        return None
    simulated.sort(key=GOALS[goal])
    what = "1 prompt" if len(jobs) == 1 else f"{len(jobs)} prompts"
    return _choice(simulated, f"{MANY_BLOCKS} blocks" if jobs[0].request.endless else what)


def _in_blocks(simulator: Simulator, base: Placement, num_prompts: int, left: Open) -> Iterator[Way]:
    for placement in pipelines(simulator, num_prompts):
        if (
            placement.ranks == base.ranks
            and placement.cfg_degree in left.cfg_degrees
            and (placement.replicas == 1 or left.replicas)
            and base.pipeline_degree in (None, placement.pipeline_degree)
        ):
            yield Way(
                placement=replace(placement, kernel=base.kernel, compile=base.compile), method="dualparal"
            )


def _as_a_whole(simulator: Simulator, base: Placement, num_prompts: int, left: Open) -> Iterator[Way]:
    for cfg_degree in left.cfg_degrees:
        with suppress(InputError):
            for placement in ways(replace(base, cfg_degree=cfg_degree), num_prompts):
                with suppress(InputError):
                    placement.check(simulator.request, simulator.spec)
                    yield Way(placement=placement)


def _with_best_form(simulator: Simulator, way: Way, num_prompts: int, goal: str) -> Simulated:
    """With the form of attention that will be found to be the quickest, of those that are left open."""
    heads = simulator.spec.transformers[0].num_attention_heads
    forms = way.placement.forms(heads, simulator.branches)
    plain = [replace(form, attention="ulysses") if form.attention == "pipesp" and form.chunks == 1 else form
             for form in forms]  # fmt: skip
    return min((simulator.simulate(way, num_prompts, form) for form in plain), key=GOALS[goal])


def _choice(simulated: list[Simulated], what: str) -> Choice:
    """simulated: the best one first. what: takes so long."""
    seconds: dict[str, float] = {}
    for one in simulated:
        seconds.setdefault(_name(one.way.placement), one.seconds)
    (best, took), *others = seconds.items()
    told = "; ".join(f"{name} {time:.3g} s" for name, time in others[:SHOWN])
    reason = f"{best}: about {took:.3g} s for {what}, as planned for this machine"
    if told:
        reason += f" ({told})"
    return Choice(placement=simulated[0].way.placement, seconds=seconds, reason=reason)


def _name(placement: Placement) -> str:
    parts = [name_of(placement)]
    if placement.pipeline_degree:
        parts.append(f"{placement.pipeline_degree} stage{'s' * (placement.pipeline_degree > 1)}")
        sharers = placement.branch_ranks // placement.pipeline_degree
        parts += [f"tokens on {sharers} ranks"] if sharers > 1 else []
    return ", ".join(parts + (["CFG 2"] if placement.cfg_degree > 1 else []))
