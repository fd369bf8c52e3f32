"""Convert a simulated run to trace spans of each rank, which `trace.merge.chrome_trace` writes.

Spans of stages and steps cover the whole run. Spans of messages, waits and layers cover the first step only,
because all steps are alike. For a long video, messages and waits are included for all steps of all frame
blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paradit.planner.discrete_events import Simulation
from paradit.planner.simulate import Simulated, Simulator
from paradit.scheduling import balance
from paradit.trace.merge import Span
from paradit.trace.spans import MESSAGE, STAGE

NANO = 1e9


def timeline(simulator: Simulator, simulated: Simulated, num_requests: int) -> dict[int, list[Span]]:
    """Return the trace spans of each rank in a simulated run, in nanoseconds from 0."""
    candidate = simulated.candidate
    spans = balance.simulate(candidate.placement, num_requests, simulated.stages)
    by_rank: dict[int, list[Span]] = {rank: [] for rank in range(candidate.placement.ranks)}
    denoised = [one for one in spans if one.stage == "denoise"]
    for one in candidate.cost_model.stages(spans, candidate):
        for rank in one.ranks:
            by_rank[rank].append(span_of(one.stage, STAGE, one.start, one.end, request=one.request))
    for rank, span in candidate.cost_model.spans(simulator, simulated, denoised):
        by_rank[rank].append(span)
    return by_rank


def simulated_spans(
    simulation: Simulation, ranks: Iterable[Sequence[int]], start: float, computing: str, waiting: str
) -> Iterator[tuple[int, Span]]:
    """Yield (rank, trace span) of simulated computing, waits and messages, shifted by `start` seconds.

    ranks: for each simulated program, the ranks of the cluster whose work the program simulates. computing,
    waiting: names of the trace categories for computing and for waits.
    """
    numbered = {f"rank {place}": of for place, of in enumerate(ranks)}
    for category, uses in ((computing, simulation.uses), (waiting, simulation.waits)):
        for use in uses:
            # Uses of no duration only mark a moment; those of links belong to no rank.
            for rank in numbered.get(use.resource, ()) if use.end > use.begin else ():
                yield rank, span_of(use.name, category, start + use.begin, start + use.end)
    for sent in simulation.sent:
        message = sent.message
        for place, rank in enumerate(message.ranks):
            out = round(sum(size for to, size in enumerate(message.table[place]) if to != place))
            came = round(sum(row[place] for source, row in enumerate(message.table) if source != place))
            if out or came:
                about = {"sent": out, "received": came}
                yield rank, span_of(message.name, MESSAGE, start + sent.begin, start + sent.end, **about)


def span_of(name: str, category: str, begin: float, end: float, **about: int) -> Span:
    """Return a trace span that begins and ends at the given times, in seconds.

    about: numbers that the trace viewer shows with the span.
    """
    return Span(name, category, round(begin * NANO), round(end * NANO), about)
