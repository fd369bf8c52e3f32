"""Choice of the placement (which ranks do which stages) that the planner finds fastest for a run.

The planner needs a calibration of this machine. The process that starts the ranks decides once, for all of
them. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement, method_of
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.engine.job import Job
from paradit.models.spec import ModelSpec
from paradit.planner.explain import reasons
from paradit.planner.hardware import Cluster
from paradit.planner.search import (
    GOALS,
    Plan,
    Plans,
    long_candidates,
    placement_of,
    simulate_long,
    simulate_rest,
)
from paradit.planner.simulate import Candidate, Simulated, Simulator
from paradit.scheduling.balance import MARGIN, Choice, candidate_placements, name_of, worth_taking
from paradit.scheduling.layer_pipeline import MANY_BLOCKS

SHOWN = 3
"""Number of other placements that are listed, with their times, in the reason for a choice."""


@dataclass(frozen=True, kw_only=True)
class Open:
    """Settings of a placement that the user has left open, and that the planner may therefore decide."""

    cfg_degrees: Sequence[int] = (1, 2)
    replicas: bool = True
    """Whether the planner may divide the ranks into replicas, which are groups that make different videos."""
    coprocess: bool = True
    """Whether the planner may let idle decode ranks do some of the denoise ranks' attention."""


def largest(jobs: list[Job], spec: ModelSpec) -> ResolvedRequest:
    """Return the request with the most tokens times steps; the plan for all jobs is made for it."""

    def work(request: ResolvedRequest) -> int:
        tokens = spec.tokens(request.num_frames, request.height, request.width)
        return tokens * request.steps_to_do

    return max((job.request for job in jobs), key=work)


def planned(jobs: list[Job], spec: ModelSpec, base: Placement, cluster: Cluster, left: Open) -> Choice | None:
    """Return the fastest placement that fits into memory, or if none fits, the one that needs least memory.

    A placement says which ranks do which stages. Returns None if the planner does not know the denoising
    method, or finds no placement. base: placement with all stages on the same ranks, and with the settings
    that the user has chosen. left: settings that the planner may decide in addition to the attention form.
    """
    simulator = _simulator(jobs, spec, cluster)
    if simulator is None:
        return None
    goal, long = "throughput" if len(jobs) > 1 else "latency", simulator.long is not None
    find = _in_blocks if long else _as_a_whole
    found = list(dict.fromkeys(find(simulator, base, len(jobs), left)))
    fitting = [candidate for candidate in found if simulator.fits(candidate)]
    if not fitting:
        goal, fitting = "memory", found
    # A group is one placement with each of its attention forms, the chosen form first.
    if long:
        groups = [[one] for one in _simulated(simulator, fitting, len(jobs), goal)]
    else:
        groups = [_in_each_form(simulator, candidate, len(jobs)) for candidate in fitting]
    if not groups:
        return None
    groups.sort(key=lambda group: GOALS[goal](group[0]))
    _put_plain_first(groups, goal)
    what = "1 prompt" if len(jobs) == 1 else f"{len(jobs)} prompts"
    what = f"{MANY_BLOCKS} blocks" if jobs[0].request.endless else what
    choice = _choice([group[0] for group in groups], what)
    return replace(choice, form=_form_line(groups[0]), why=_reasons(groups, goal))


def planned_form(jobs: list[Job], spec: ModelSpec, placement: Placement, cluster: Cluster) -> Choice | None:
    """Return a placement changed to the attention form (such as Ulysses) that the planner finds fastest.

    The form is returned in a `Choice`, with its time and the times of other forms. Returns None if the
    placement allows only one form, the planner does not know the denoising method, or the video is made in
    frame blocks.
    """
    simulator = _simulator(jobs, spec, cluster)
    if simulator is None or simulator.long is not None:
        return None
    simulated = _in_each_form(
        simulator, Candidate(placement=placement, coprocess=placement.coprocess), len(jobs)
    )
    if len(simulated) == 1:
        return None
    line, seconds = _form_line(simulated), {str(one.choice): one.step for one in simulated}
    return Choice(placement=placement_of(simulated[0]), seconds=seconds, reason=line, form=line)


def _simulator(jobs: list[Job], spec: ModelSpec, cluster: Cluster) -> Simulator | None:
    """Return the planner's simulator for the largest of the requests.

    Returns None if the planner does not know the request's denoising method.
    """
    request = largest(jobs, spec)
    if method_of(request).cost_model is None:
        return None
    if request.endless:  # simulated as a video of many blocks
        frames = MANY_BLOCKS * next(request.block_sizes(spec)) * spec.vae.temporal_compression
        request = replace(request, num_frames=frames, trim=True)
    dtype = request.dtype or ("bf16" if cluster.device.ahead else "fp32")  # only GPUs run ahead of Python
    return Simulator(cluster, spec, request, dtype, request if method_of(request).streams else None)


def _in_blocks(simulator: Simulator, base: Placement, num_prompts: int, left: Open) -> Iterator[Candidate]:
    for candidate in long_candidates(simulator, num_prompts):
        placement = candidate.placement
        if (
            placement.ranks == base.ranks
            and placement.cfg_degree in left.cfg_degrees
            and (placement.replicas == 1 or left.replicas)
            and placement.method_options.items() >= base.method_options.items()  # keeps what the user has set
        ):
            yield replace(
                candidate,
                placement=replace(placement, attention_backend=base.attention_backend, compile=base.compile),
            )


def _as_a_whole(simulator: Simulator, base: Placement, num_prompts: int, left: Open) -> Iterator[Candidate]:
    for cfg_degree in left.cfg_degrees:
        with suppress(InputError):  # the ranks do not divide into two guidance branches
            for placement in candidate_placements(replace(base, cfg_degree=cfg_degree), num_prompts):
                with suppress(InputError):
                    check_placement(placement, simulator.request, simulator.spec)
                    yield Candidate(placement=placement)
                    if left.coprocess:
                        # Raises InputError if no rank could help, or not with this attention.
                        yield Candidate(placement=replace(placement, coprocess=True), coprocess=True)


def _simulated(
    simulator: Simulator, candidates: list[Candidate], num_prompts: int, goal: str
) -> list[Simulated]:
    """Return simulations of placements (which ranks do which stages) for a long video.

    Only placements that may be the best are simulated, and some to compare the best with. goal: key of
    `planner.search.GOALS`, by which the best is chosen.
    """
    simulation = list(simulate_long(simulator, candidates, num_prompts, goal))
    best = min(simulation, key=GOALS[goal], default=None)
    if best is None:
        return []
    left = [candidate for candidate in candidates if candidate not in {one.candidate for one in simulation}]
    return [*simulation, *simulate_rest(simulator, left, best, num_prompts, goal)]


def _in_each_form(simulator: Simulator, candidate: Candidate, num_prompts: int) -> list[Simulated]:
    """Return simulations of a placement with every attention form (such as Ulysses) that it allows.

    The form to choose comes first.
    """
    spec = simulator.spec.transformers[0]
    choices = candidate.placement.choices(spec.num_attention_heads, simulator.branches, spec.sparse_patterns)
    simulated = [simulator.simulate(candidate, num_prompts, choice.simplest) for choice in choices]
    taken = simulated.pop(worth_taking([one.step for one in simulated]))
    return [taken, *simulated]


def _put_plain_first(groups: list[list[Simulated]], goal: str) -> None:
    """Move the fastest placement without co-processing to the front, unless co-processing is clearly faster.

    Co-processing lets idle decode ranks do some of the attention. It is clearly faster if it saves more than
    the fraction `MARGIN` of the time. groups: for each placement, the fastest first, its simulations with
    several attention forms. goal: key of `planner.search.GOALS`.
    """
    plain = next(number for number, (one, *_) in enumerate(groups) if not one.candidate.coprocess)
    if not worth_taking([GOALS[goal](groups[number][0])[0] for number in (plain, 0)]):
        groups.insert(0, groups.pop(plain))


def _choice(simulated: list[Simulated], what: str) -> Choice:
    """Return the best of several simulated placements as a `Choice`, with a line of text for the reason.

    The line has the time of the best placement, and the times of some others to compare with. simulated:
    simulations of the placements, the best first. what: words that name the simulated work in the line, such
    as `2 prompts`.
    """
    seconds: dict[str, float] = {}
    for one in simulated:
        seconds.setdefault(_name(one.candidate), one.seconds)
    (best, took), *others = seconds.items()
    told = "; ".join(f"{name} {time:.3g} s" for name, time in others[:SHOWN])
    reason = f"{best}: about {took:.3g} s for {what}, as planned for this machine"
    if told:
        reason += f" ({told})"
    return Choice(placement=placement_of(simulated[0]), seconds=seconds, reason=reason)


def _reasons(groups: list[list[Simulated]], goal: str) -> tuple[str, ...]:
    """Return lines of text that say why the first of the simulated placements is the best one.

    Returns no lines if no placement fits into memory. groups: for each placement, its simulations with
    several attention forms. goal: key of `planner.search.GOALS`.
    """
    if goal == "memory":
        return ()
    plans = [Plan(name="", simulated=one, fits=True) for group in groups for one in group]
    tried = Plans(best=plans[:1], usual=[], tried=plans, compared=len(plans))
    return tuple(reasons(tried, goal, lambda seconds: f"{seconds:.3g} s"))


def _form_line(simulated: list[Simulated]) -> str:
    """Return a line of text with the seconds per step of the chosen attention form and of the other forms.

    simulated: simulations of one placement, each with another form; the first has the chosen form. The line
    is empty if there is only one form.
    """
    if len(simulated) == 1:
        return ""
    taken, *others = simulated
    told = "; ".join(f"{one.choice} {one.step:.3g} s" for one in others)
    said = f"attention {taken.choice}: {taken.step:.3g} s a step, as planned for this machine"
    return f"{said} ({told}); the simplest is chosen unless another is {MARGIN:.0%} faster"


def _name(candidate: Candidate) -> str:
    placement = candidate.placement
    parts = [name_of(placement), *candidate.cost_model.divided(candidate)]
    parts += ["CFG 2"] if placement.cfg_degree > 1 else []
    return ", ".join(parts + (["co-processing"] if placement.coprocess else []))
