"""Search for the best execution plan: simulate possible plans for a cluster, and sort them by a goal."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from paradit.attention.registry import FORMS, Choice
from paradit.config.errors import InputError
from paradit.config.methods.method import check_placement
from paradit.config.placement import Placement
from paradit.config.requests import ResolvedRequest
from paradit.planner.settings import SETTINGS, differs_only_in
from paradit.planner.simulate import Candidate, Simulated, Simulator, cost_model_of
from paradit.scheduling.balance import candidate_placements, decoders_by_rule
from paradit.scheduling.rank_memory import fitting_tile


class Taken(Protocol):
    """Protocol (interface) of an execution plan's cost: time and memory, as simulated or as lower bounds."""

    @property
    def latency(self) -> float:
        """Seconds that one video takes by itself."""

    @property
    def seconds(self) -> float:
        """Seconds that the videos of all prompts take."""

    @property
    def memory(self) -> tuple[int, ...]:
        """Peak memory in bytes, one number per rank."""


GOALS: dict[str, Callable[[Taken], tuple[float, ...]]] = {
    "latency": lambda one: (one.latency, one.seconds),
    "throughput": lambda one: (one.seconds, one.latency),
    "memory": lambda one: (max(one.memory), one.seconds),
}
"""Mapping from each goal of the search to a function that returns a plan's sort key; the plan with the
smallest key is the best. A key begins with the number to minimise: seconds of one video by itself, seconds of
all prompts, or bytes on the fullest rank. The key's second number decides ties."""
IN_BLOCKS = Choice.plain()
"""Placeholder, in plans for long videos in frame blocks, for the attention form (such as Ulysses or ring).
Such plans have no choice of form."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Simulated execution plan, with its name and whether it fits in the device's memory."""

    name: str
    simulated: Simulated
    fits: bool

    @property
    def placement(self) -> Placement:
        """Placement (which ranks do what) for running the plan, with its attention form, such as Ulysses."""
        return placement_of(self.simulated)


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Result of the search for a plan: the best plans, common plans to compare with, and all plans tried."""

    best: list[Plan]
    """Best plan of each kind (such as replicas) among those that fit in memory, best first; if no plan fits,
    among all."""
    usual: list[Plan]
    """Common ways of using the cluster, for comparison with the best."""
    tried: list[Plan]
    """Plans that were simulated, whether or not they fit in memory, except those that offload weights. For a
    long video, only some plans are simulated: those that may be the best of their kind (such as replicas),
    and some to compare with the best."""
    compared: int


def find_plans(simulator: Simulator, num_prompts: int, goal: str) -> Plans:
    """Find the best plans for making `num_prompts` videos.

    Raises InputError if the cluster cannot be used at all.
    """
    found: dict[tuple[Candidate, Choice], Simulated] = {}

    def simulated(candidate: Candidate, choice: Choice) -> Simulated:
        if (candidate, choice) not in found:
            found[candidate, choice] = simulator.simulate(candidate, num_prompts, choice)
        return found[candidate, choice]

    limit = simulator.cluster.device.memory
    usual = []
    for name, candidate, choice in usual_candidates(simulator, num_prompts):
        usual.append(_plan(simulated(candidate, choice), limit, name))
        # Plans that do not fit are shown too, followed by the same with tiles that fit.
        if not usual[-1].fits and (tiles := with_tiles(simulator, candidate)):
            usual.append(_plan(simulated(tiles, choice), limit, f"{name}, tiles of {tiles.tile}"))
    for candidate, choice in all_candidates(simulator, num_prompts):
        if max(simulated(candidate, choice).memory) > limit and (tiles := with_tiles(simulator, candidate)):
            simulated(tiles, choice)
    long = long_candidates(simulator, num_prompts)
    long = [
        candidate if simulator.fits(candidate) else with_tiles(simulator, candidate) or candidate
        for candidate in long
    ]
    found |= {(one.candidate, one.choice): one for one in simulate_long(simulator, long, num_prompts, goal)}
    plans = [_plan(one, limit) for (candidate, _), one in found.items() if not candidate.offload]
    chosen = [plan for plan in plans if plan.fits] or plans
    chosen.sort(key=lambda plan: GOALS[goal](plan.simulated))
    more: list[Simulated] = []
    # Plans for a long video that cannot be best were skipped; some are needed to say what settings are worth.
    if chosen[0].fits:
        left = [candidate for candidate in long if (candidate, IN_BLOCKS) not in found]
        more = list(simulate_rest(simulator, left, chosen[0].simulated, num_prompts, goal))
        plans += [_plan(one, limit) for one in more]
    best: dict[str, Plan] = {}
    for plan in chosen:  # sorted, so the first of a kind is its best
        best.setdefault(plan.simulated.candidate.kind, plan)
    return Plans(best=list(best.values()), usual=usual, tried=plans, compared=len(found) + len(more))


def with_tiles(simulator: Simulator, candidate: Candidate) -> Candidate | None:
    """Return a plan changed to the largest VAE decode tiles that make it fit in memory; None if none do."""

    def fits(request: ResolvedRequest) -> bool:
        return simulator.fits(replace(candidate, tile=request.vae_tile))

    tile = fitting_tile(simulator.request_of(candidate), simulator.spec, fits)
    return replace(candidate, tile=tile) if tile else None


def usual_candidates(simulator: Simulator, num_prompts: int) -> Iterator[tuple[str, Candidate, Choice]]:
    """Yield the common ways of using the cluster that are possible, as (name, plan, attention form).

    They are one GPU, plain Ulysses, CFG with Ulysses, offloading, replicas, and a long video's blocks on one
    GPU.
    """
    ranks, plain = simulator.cluster.ranks, Choice.plain()
    if simulator.long is not None:
        candidate = Candidate(placement=Placement(), method=simulator.long.method)
        yield "one GPU, in blocks (approximate)", candidate, plain
    if simulator.only_long:
        return
    yield "one GPU", Candidate(placement=Placement()), plain
    if ranks == 1:
        yield "offloading", Candidate(placement=Placement(), offload=True), plain
        return
    with suppress(InputError):
        yield "plain Ulysses", Candidate(placement=_checked(simulator, ranks=ranks)), plain
    with suppress(InputError):
        yield "CFG and Ulysses", Candidate(placement=_checked(simulator, ranks=ranks, cfg_degree=2)), plain
    with suppress(InputError):
        yield (
            "Ulysses, offloading",
            Candidate(placement=_checked(simulator, ranks=ranks), offload=True),
            plain,
        )
    if num_prompts > 1:
        with suppress(InputError):
            yield (
                f"{ranks} replicas",
                Candidate(placement=_checked(simulator, ranks=ranks, replicas=ranks)),
                plain,
            )


def all_candidates(simulator: Simulator, num_prompts: int) -> Iterator[tuple[Candidate, Choice]]:
    """Yield the plans to simulate for a video denoised as a whole, each with its possible attention forms.

    If some ranks only decode, the plans have either one such rank, or about as many as PipeDiT's rule says
    (`decoders_by_rule`). Long videos in frame blocks have other plans (`planner.block_costs.pipelines`).
    """
    if simulator.only_long:
        return
    for degree in (1, 2):
        with suppress(InputError):  # for example, two groups of ranks for one guidance branch
            base = _checked(simulator, ranks=simulator.cluster.ranks, cfg_degree=degree)
            for placement in _placements(simulator, base, num_prompts):
                yield from _with_forms(simulator, placement)


def simulate_long(
    simulator: Simulator, candidates: Iterable[Candidate], num_prompts: int, goal: str
) -> Iterator[Simulated]:
    """Simulate the plans for a long video that may be the best of their kind (such as replicas).

    A lower bound of each plan's cost is known without simulating it. Plans with low bounds are simulated
    first; a plan whose bound exceeds the best cost found so far is skipped.
    """
    measure = GOALS[goal]
    least = {
        candidate: candidate.cost_model.least(simulator, candidate, num_prompts) for candidate in candidates
    }
    fitting = {candidate.kind for candidate in least if simulator.fits(candidate)}
    # If no candidate of a kind fits, the smallest one is simulated, to report how much memory it lacks.
    smallest: dict[str, Candidate] = {}
    for candidate in sorted(least, key=lambda candidate: max(least[candidate].memory)):
        smallest.setdefault(candidate.kind, candidate)
    best: dict[str, tuple[float, ...]] = {}
    for candidate in sorted(least, key=lambda candidate: measure(least[candidate])):
        kind = candidate.kind
        worth = measure(least[candidate]) <= best.get(kind, (math.inf,))
        if not simulator.fits(candidate):
            worth = kind not in fitting and (candidate == smallest[kind] or worth)
        if worth:
            simulated = _simulated(simulator, candidate, num_prompts)
            best[kind] = min(measure(simulated), best.get(kind, (math.inf,)))
            yield simulated


def simulate_rest(
    simulator: Simulator, candidates: Iterable[Candidate], best: Simulated, num_prompts: int, goal: str
) -> Iterator[Simulated]:
    """Simulate plans for a long video that differ from the best plan in one setting.

    They show what that setting is worth. Only plans that fit in memory are simulated. A plan is skipped if
    its lower bound exceeds the best cost found for that setting.
    """
    measure = GOALS[goal]
    fitting = [candidate for candidate in candidates if simulator.fits(candidate)]
    for setting in SETTINGS:
        others = [
            candidate
            for candidate in fitting
            if differs_only_in(setting, (candidate, IN_BLOCKS), (best.candidate, best.choice))
        ]
        least = {
            candidate: measure(candidate.cost_model.least(simulator, candidate, num_prompts))
            for candidate in others
        }
        found: tuple[float, ...] = (math.inf,)
        for candidate in sorted(others, key=least.__getitem__):
            if least[candidate] <= found:
                simulated = _simulated(simulator, candidate, num_prompts)
                found = min(found, measure(simulated))
                yield simulated


def _simulated(simulator: Simulator, candidate: Candidate, num_prompts: int) -> Simulated:
    """Simulate a plan for a long video, with Python's garbage collector switched off meanwhile.

    A simulation makes millions of objects without reference cycles, which the collector would search again
    and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return simulator.simulate(candidate, num_prompts, IN_BLOCKS)
    finally:
        if was_on:
            gc.enable()


def _placements(simulator: Simulator, base: Placement, num_prompts: int) -> Iterator[Placement]:
    for placement in candidate_placements(base, num_prompts):
        if not _is_worth_a_look(simulator, placement):
            continue
        yield placement
        decoders = placement.denoise_ranks if placement.decode is None else placement.decode
        if len(decoders) > 1 and placement.replicas == 1:
            # Refused if a frame has fewer tiles than there are decode ranks.
            with suppress(InputError):
                shared = replace(placement, encode=decoders[:1], decode=decoders, decode_degree=len(decoders))
                check_placement(shared, simulator.request, simulator.spec)
                yield shared


def long_candidates(simulator: Simulator, num_prompts: int) -> list[Candidate]:
    """Return the plans for a long video in frame blocks; empty if the video is not made in blocks."""
    if simulator.long is None:
        return []
    return list(cost_model_of(simulator.long.method).candidates(simulator, num_prompts))


def _checked(simulator: Simulator, **fields: int) -> Placement:
    placement = Placement(**fields)  # type: ignore[arg-type]
    check_placement(placement, simulator.request, simulator.spec)
    return placement


def _is_worth_a_look(simulator: Simulator, placement: Placement) -> bool:
    if Candidate(placement=placement).kind != "apart":
        return True
    alone = simulator.simulate(Candidate(placement=Placement()), 1, Choice.plain())
    by_rule = decoders_by_rule(placement.ranks, alone.stages["denoise"], alone.stages["decode"])
    return len(placement.decode_ranks) in {1, by_rule, by_rule + 1}


def _with_forms(simulator: Simulator, placement: Placement) -> Iterator[tuple[Candidate, Choice]]:
    choices = _choices(simulator, placement)
    for choice in choices:
        yield Candidate(placement=placement), choice
    if Candidate(placement=placement).kind == "apart" and placement.cfg_degree == 1:
        # A single denoise rank can interleave branches only if decode ranks help it: add those choices.
        helped = _choices(simulator, replace(placement, coprocess=True))
        for choice in dict.fromkeys([*choices, *helped]):
            yield Candidate(placement=placement, coprocess=True), choice
    # Forms that `--attention auto` does not try, such as ring, only have to be compared.
    for attention in (form.name for form in FORMS.all() if form.compared):
        if placement.branch_ranks > 1:
            with suppress(InputError):
                changed = replace(placement, attention=attention)
                for choice in _choices(simulator, changed):
                    yield Candidate(placement=changed), choice


def _choices(simulator: Simulator, placement: Placement) -> list[Choice]:
    spec = simulator.spec.transformers[0]
    placement.check_attention(spec.sparse_patterns)
    choices = placement.choices(spec.num_attention_heads, simulator.branches, spec.sparse_patterns)
    return [choice.simplest for choice in choices]


def placement_of(simulated: Simulated) -> Placement:
    """Return the placement (which ranks do what) for running a simulated plan, and its attention form."""
    return simulated.candidate.cost_model.placement(simulated)


def _plan(simulated: Simulated, limit: float, name: str = "") -> Plan:
    return Plan(name=name or _name(simulated), simulated=simulated, fits=max(simulated.memory) <= limit)


def _name(simulated: Simulated) -> str:
    candidate = simulated.candidate
    parts, shared = candidate.cost_model.name(candidate, simulated.choice)
    parts += ["CFG 2"] if candidate.placement.cfg_degree > 1 else []
    parts += shared
    if candidate.coprocess:
        parts.append("co-processing")
    if candidate.tile:
        parts.append(f"tiles of {candidate.tile}")
    return ", ".join(parts)
