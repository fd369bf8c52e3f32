"""The ways of using a cluster for a request, simulated, and the best by a goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from paradit.errors import InputError
from paradit.placement import Form, Placement
from paradit.planner.simulate import Simulated, Simulator, Way
from paradit.scheduling.balance import decoders_by_rule, name_of, ways

GOALS: dict[str, Callable[[Simulated], tuple[float, ...]]] = {
    "latency": lambda one: (one.latency, one.seconds),
    "throughput": lambda one: (one.seconds, one.latency),
    "memory": lambda one: (max(one.memory), one.seconds),
}
"""What is to be least: of one video by itself, of all prompts, on the fullest rank."""
WAITING, DECODING = 0.15, 0.15
"""Parts of a step, and of a video, from which on these are said to bound a plan."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A simulated way, with its name."""

    name: str
    simulated: Simulated
    fits: bool

    @property
    def placement(self) -> Placement:
        """With the form of attention written into it."""
        return placement_of(self.simulated)


@dataclass(frozen=True, kw_only=True)
class Plans:
    """What was compared."""

    best: list[Plan]
    """The best of each kind that fits, the best first; those that do not fit where none does."""
    usual: list[Plan]
    """What is usually done, for comparison."""
    compared: int


def find_plans(simulator: Simulator, num_prompts: int, goal: str) -> Plans:
    """The best ways of making so many videos. Raises InputError where the cluster cannot be used at all."""
    found: dict[tuple[Way, Form], Simulated] = {}

    def simulated(way: Way, form: Form) -> Simulated:
        if (way, form) not in found:
            found[way, form] = simulator.simulate(way, num_prompts, form)
        return found[way, form]

    usual = [
        _plan(simulator, simulated(way, form), name) for name, way, form in usual_ways(simulator, num_prompts)
    ]
    for way, form in candidates(simulator, num_prompts):
        simulated(way, form)
    plans = [_plan(simulator, one) for (way, _), one in found.items() if not way.offload]
    chosen = [plan for plan in plans if plan.fits] or plans
    chosen.sort(key=lambda plan: GOALS[goal](plan.simulated))
    best: dict[str, Plan] = {}
    for plan in chosen:
        best.setdefault(kind_of(plan.simulated.way), plan)
    return Plans(best=list(best.values()), usual=usual, compared=len(found))


def usual_ways(simulator: Simulator, num_prompts: int) -> Iterator[tuple[str, Way, Form]]:
    """One GPU; plain Ulysses; CFG and Ulysses; offloading; replicas. Named; those that can be."""
    ranks, plain = simulator.cluster.ranks, Form(attention="ulysses")
    yield "one GPU", Way(placement=Placement()), plain
    if ranks == 1:
        yield "offloading", Way(placement=Placement(), offload=True), plain
        return
    with suppress(InputError):
        yield "plain Ulysses", Way(placement=_checked(simulator, ranks=ranks)), plain
    with suppress(InputError):
        yield "CFG and Ulysses", Way(placement=_checked(simulator, ranks=ranks, cfg_degree=2)), plain
    with suppress(InputError):
        yield "Ulysses, offloading", Way(placement=_checked(simulator, ranks=ranks), offload=True), plain
    if num_prompts > 1:
        with suppress(InputError):
            yield f"{ranks} replicas", Way(placement=_checked(simulator, ranks=ranks, replicas=ranks)), plain


def candidates(simulator: Simulator, num_prompts: int) -> Iterator[tuple[Way, Form]]:
    """Placements with all their forms of attention; of decoders about as many as PipeDiT's rule says."""
    for degree in (1, 2):
        with suppress(InputError):
            base = _checked(simulator, ranks=simulator.cluster.ranks, cfg_degree=degree)
            for placement in ways(base, num_prompts):
                if _is_worth_a_look(simulator, placement):
                    yield from _with_forms(simulator, placement)


def _checked(simulator: Simulator, **fields: int) -> Placement:
    placement = Placement(**fields)  # type: ignore[arg-type]
    placement.check(simulator.request, simulator.spec)
    return placement


def _is_worth_a_look(simulator: Simulator, placement: Placement) -> bool:
    if kind_of(Way(placement=placement)) != "apart":
        return True
    alone = simulator.simulate(Way(placement=Placement()), 1, Form(attention="ulysses"))
    by_rule = decoders_by_rule(placement.ranks, alone.stages["denoise"], alone.stages["decode"])
    return len(placement.decode_ranks) in {1, by_rule, by_rule + 1}


def _with_forms(simulator: Simulator, placement: Placement) -> Iterator[tuple[Way, Form]]:
    heads = simulator.spec.transformers[0].num_attention_heads
    for found in placement.forms(heads, simulator.branches):
        form = replace(found, attention="ulysses") if found.chunks == 1 else found
        yield Way(placement=placement), form
        if kind_of(Way(placement=placement)) == "apart" and placement.cfg_degree == 1:
            yield Way(placement=placement, coprocess=True), form
    for attention in ("ring", "usp"):
        if placement.branch_ranks > 1:
            with suppress(InputError):
                changed = replace(placement, attention=attention)
                yield Way(placement=changed), Form(attention=attention)


def kind_of(way: Way) -> str:
    """together, apart, apart with co-processing, or replicas."""
    if way.placement.replicas > 1:
        return "replicas"
    kind = "apart" if name_of(way.placement).startswith("apart") else "together"
    return f"{kind}, co-processing" if way.coprocess else kind


def placement_of(simulated: Simulated) -> Placement:
    """The way's placement with the form that was simulated."""
    form = simulated.form
    return replace(
        simulated.way.placement,
        attention=form.attention,
        chunks=form.chunks if form.attention == "pipesp" else None,
        interleave=form.interleave or None,
    )


def _plan(simulator: Simulator, simulated: Simulated, name: str = "") -> Plan:
    fits = max(simulated.memory) <= simulator.cluster.device.memory
    return Plan(name=name or _name(simulated), simulated=simulated, fits=fits)


def _name(simulated: Simulated) -> str:
    way, form = simulated.way, simulated.form
    parts = [name_of(way.placement)]
    if way.placement.cfg_degree > 1:
        parts.append("CFG 2")
    if way.placement.branch_ranks > 1:
        parts.append(form.attention + (f" in {form.chunks}" if form.chunks > 1 else ""))
        if form.interleave:
            parts.append("interleaved")
    if way.coprocess:
        parts.append("co-processing")
    return ", ".join(parts)


def bound_of(simulated: Simulated) -> str:
    """What takes the time, in a few words."""
    stages = simulated.stages
    if simulated.exposed > WAITING:
        return f"messages: {100 * simulated.exposed:.0f} % of a step waits for them"
    if stages["decode"] > max(stages["denoise"], DECODING * simulated.latency):
        return "decoding"
    if stages["decode"] > DECODING * simulated.latency and not kind_of(simulated.way).startswith("apart"):
        return f"computing; decoding is {100 * stages['decode'] / simulated.latency:.0f} % of a video"
    return "computing"
