"""Explain an execution plan: what bounds its time, what each setting is worth, why other plans do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from paradit.attention.registry import FORMS
from paradit.config.errors import InputError
from paradit.config.requests import ResolvedRequest
from paradit.config.values import NONE
from paradit.planner.search import GOALS, Plan, Plans
from paradit.planner.settings import differs_only_in
from paradit.planner.simulate import Simulated, Simulator
from paradit.scheduling.rank_memory import PARTS, way_out

WAITING, DECODING = 0.15, 0.15
"""Thresholds above which waiting or decoding is reported as the bottleneck of a plan: the fraction of a step
spent waiting, and the fraction of a video's latency spent decoding."""
SAID = 0.05
"""Smallest fraction of a step's time, spent waiting for messages, that the explanation of a plan mentions."""


def bound_of(simulated: Simulated) -> str:
    """Return a few words on the bottleneck of a simulated plan: messages, decoding or computing."""
    stages = simulated.stages
    if simulated.exposed > WAITING:
        return simulated.candidate.cost_model.waits(simulated)
    if stages["decode"] > max(stages["denoise"], DECODING * simulated.latency):
        return "decoding"
    # On ranks of its own, decoding runs while the next video is denoised.
    if stages["decode"] > DECODING * simulated.latency and not simulated.candidate.kind.startswith("apart"):
        return f"computing; decoding is {100 * stages['decode'] / simulated.latency:.0f} % of a video"
    return "computing"


def decoder_busy(simulated: Simulated) -> float:
    """Return the average fraction of a simulated run for which ranks that only decode are busy."""
    placement = simulated.candidate.placement
    ranks = [rank for rank in placement.decode_ranks if rank not in placement.denoise_ranks]
    return sum(1 - simulated.idle[rank] for rank in ranks) / max(1, len(ranks))


@dataclass(frozen=True)
class Switch:
    """Setting in which execution plans can differ, with functions that describe its value and its effect."""

    name: str
    """Name of the setting, a key of `planner.settings.SETTINGS`."""
    of: Callable[[Simulated], str]
    why: Callable[[Simulated, Simulated], str]
    """Function that returns a text on why two plans take different times; empty if there is nothing to say.
    Its arguments are the best plan, and the best plan with another value of this setting."""


def _idle_decoder(best: Simulated, other: Simulated) -> str:
    for one in (best, other):
        if one.candidate.kind.startswith("apart"):
            return f"on ranks of their own, decoders are busy {100 * decoder_busy(one):.0f} % of the time"
    return ""


def _helped(best: Simulated, other: Simulated) -> str:
    plain = other if best.candidate.coprocess else best
    if not plain.candidate.kind.startswith("apart"):
        return ""
    one = len(plain.candidate.placement.decode_ranks) == 1
    return f"{'the decoder is' if one else 'decoders are'} busy {100 * decoder_busy(plain):.0f} % of the time"


def _waits(best: Simulated, other: Simulated) -> str:
    if max(best.exposed, other.exposed) < SAID:
        return ""
    waits = f"a step waits for messages {100 * best.exposed:.0f} % of its time"
    return f"{waits}, otherwise {100 * other.exposed:.0f} %"


def _attention(one: Simulated) -> str:
    return one.choice.form.written(one.choice.options)


def _branches(one: Simulated) -> str:
    return "on ranks of their own" if one.candidate.placement.cfg_degree > 1 else "on the same ranks"


def _approximate(best: Simulated, other: Simulated) -> str:
    candidates = [one.candidate for one in (best, other) if one.candidate.cost_model.approximate]
    return f"{candidates[0].method} {candidates[0].cost_model.approximate}" if candidates else ""


SWITCHES = (
    Switch("method", lambda one: one.candidate.cost_model.title(one.candidate), _approximate),
    Switch("stages", lambda one: one.candidate.kind.partition(",")[0], _idle_decoder),
    Switch("co-processing", lambda one: "on" if one.candidate.coprocess else "off", _helped),
    Switch("guidance branches", _branches, _waits),
    Switch("a stage's tokens", lambda one: one.candidate.cost_model.tokens(one.candidate), lambda *_: ""),
    Switch("attention", _attention, _waits),
    Switch("interleaved", lambda one: "on" if one.choice.interleave else "off", _waits),
    Switch(
        "ranks that share a decode", lambda one: str(one.candidate.placement.decode_degree), lambda *_: ""
    ),
)


def compared(plans: Plans, goal: str) -> Iterator[tuple[Switch, Simulated]]:
    """Yield each setting of the best plan, with the best other plan that differs in that setting alone.

    Only plans that fit in memory are considered. Settings without such a plan are left out.
    """
    best = plans.best[0].simulated
    fitting = [plan.simulated for plan in plans.tried if plan.fits]
    for switch in SWITCHES:
        # Plans may differ in a setting and yet read alike, such as in how many ranks only decode.
        others = [
            one
            for one in fitting
            if differs_only_in(switch.name, (best.candidate, best.choice), (one.candidate, one.choice))
            and switch.of(one) != switch.of(best)
        ]
        if others:
            yield switch, min(others, key=GOALS[goal])


def reasons(plans: Plans, goal: str, said: Callable[[float], str]) -> list[str]:
    """Return a line of text for each setting of the best plan: what another value of the setting would cost.

    A line has the setting's value, another value, and the cost of the best plan with that other value. said:
    function that turns a cost (seconds, or bytes if the goal of the search is to save memory) into text.
    """
    if not plans.best[0].fits:
        return []
    best, found = plans.best[0].simulated, []
    for switch, other in compared(plans, goal):
        value, instead = (GOALS[goal](one)[0] for one in (best, other))
        change = 100 * (instead / value - 1)
        line = (
            f"{switch.name}: {switch.of(best)}; {switch.of(other)} instead: {said(instead)} ({change:+.0f} %)"
        )
        why = switch.why(best, other)
        found.append(f"{line}; {why}" if why else line)
    if best.candidate.tile:
        found.append(f"decode tiles: {best.candidate.tile}; larger ones do not fit")
    return found


def ruled_out(best: Simulated, simulator: Simulator) -> list[str]:
    """Return a line of text for each attention form that suits a sparse model, but not the ranks of a plan.

    Only forms that `--attention auto` tries are named.
    """
    placement, patterns = best.candidate.placement, simulator.spec.transformers[0].sparse_patterns
    found = []
    for form in FORMS.all() if patterns and placement.branch_ranks > 1 else ():
        if form.automatic:
            try:
                replace(placement, attention=form.name, options=NONE).check_attention(patterns)
            except InputError as error:
                why, _, _ = str(error).partition(": ")
                found.append(f"attention: {_attention(best)}, which divides heads; {why}")
    return found


def otherwise(
    plan: Plan, simulator: Simulator, num_prompts: int, goal: str, said: Callable[[float], str]
) -> list[str]:
    """Return a line of text for each setting of a plan's denoising method, such as the left context.

    A line has the setting's value, another value, and the plan's cost with the other value. Settings that are
    part of the placement (which ranks do what) are left out, because `reasons` returns lines about them.
    said: function that turns a cost (seconds or bytes) into text.
    """
    mine, found = plan.simulated, []
    compared = mine.candidate.cost_model.compared(simulator, mine, num_prompts) if plan.fits else ()
    for setting, value, other_value, other, fits in compared:
        took, others = (GOALS[goal](one)[0] for one in (mine, other))
        change = 100 * (others / took - 1)
        line = f"{setting}: {value}; {other_value} instead: {said(others)} ({change:+.0f} %)"
        found.append(line if fits else f"{line}; that does not fit")
    return found


def misfits(plans: list[Plan], simulator: Simulator, said: Callable[[float], str]) -> list[str]:
    """Return lines of text on the plans that do not fit in memory: what is too large, and how they would fit.

    Each line names the fullest rank and what takes most of its memory. Plans that lack memory for the same
    part, and would fit with the same change, share a line. said: function that turns a number of bytes into
    text.
    """
    limit, request = simulator.cluster.device.memory, simulator.request
    alike: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for plan in plans:
        by_rank = simulator.memory_parts(plan.simulated.candidate)
        rank = max(range(len(by_rank)), key=lambda number: by_rank[number]["peak"])
        peak = by_rank[rank]["peak"]
        parts = {name: size for name, size in by_rank[rank].items() if name != "peak"}
        largest = max(parts, key=parts.__getitem__)
        most = f"{said(parts[largest])} of that for {PARTS[largest]}"
        text = f"{said(peak)} on rank {rank} (limit {said(limit)}), {most}"
        # Neither weights nor text depend on the size of the video.
        if largest not in ("weights", "text_cache"):
            text += f" of {request.width}x{request.height}x{request.num_frames}"
        alike.setdefault((largest, _way_out(plan, simulator)), []).append(
            (by_rank[rank]["peak"], text, plan.name)
        )
    found = []
    for (_, instead), group in alike.items():
        _, text, _ = max(group)
        names = "; ".join(dict.fromkeys(name for *_, name in group))
        found.append(f"does not fit: {text}{instead} ({names})")
    return found


def _way_out(plan: Plan, simulator: Simulator) -> str:
    candidate = plan.simulated.candidate

    def fits(request: ResolvedRequest) -> bool:
        # Cost models read either `request` or `long`, depending on the method.
        changed = replace(simulator, request=request, long=request)
        return changed.fits(replace(candidate, tile=request.vae_tile))

    return way_out(simulator.request_of(candidate), simulator.spec, fits)
