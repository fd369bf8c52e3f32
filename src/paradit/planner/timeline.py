"""Convert a simulated run to spans of each rank, in the form of a trace (`trace.merge.chrome_trace`).

Stages and steps are those of the whole run; messages, waits and layers those of the first step only, because
all others are like it. A long video has every block-step with its messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paradit.planner.events import Played
from paradit.planner.simulate import Simulated, Simulator
from paradit.scheduling import balance
from paradit.trace.merge import Span
from paradit.trace.spans import MESSAGE, STAGE

NANO = 1e9


def timeline(simulator: Simulator, simulated: Simulated, num_requests: int) -> dict[int, list[Span]]:
    """Return the simulated spans of each rank, in nanoseconds from 0."""
    way = simulated.way
    spans = balance.play(way.placement, num_requests, simulated.stages)
    by_rank: dict[int, list[Span]] = {rank: [] for rank in range(way.placement.ranks)}
    denoised = [one for one in spans if one.stage == "denoise"]
    for one in way.player.stages(spans, way):
        for rank in one.ranks:
            by_rank[rank].append(span_of(one.stage, STAGE, one.start, one.end, request=one.request))
    for rank, span in way.player.spans(simulator, simulated, denoised):
        by_rank[rank].append(span)
    return by_rank


def played_spans(
    played: Played, ranks: Iterable[Sequence[int]], start: float, computing: str, waiting: str
) -> Iterator[tuple[int, Span]]:
    """Yield (rank, span) of played programs, shifted to begin at `start` seconds.

    ranks: for each program, the cluster's ranks that it stands for. computing, waiting: categories of the
    spans.
    """
    numbered = {f"rank {place}": of for place, of in enumerate(ranks)}
    for category, uses in ((computing, played.uses), (waiting, played.waits)):
        for use in uses:
            for rank in numbered.get(use.resource, ()) if use.end > use.begin else ():
                yield rank, span_of(use.name, category, start + use.begin, start + use.end)
    for sent in played.sent:
        message = sent.message
        for place, rank in enumerate(message.ranks):
            out = round(sum(size for to, size in enumerate(message.table[place]) if to != place))
            came = round(sum(row[place] for source, row in enumerate(message.table) if source != place))
            if out or came:
                about = {"sent": out, "received": came}
                yield rank, span_of(message.name, MESSAGE, start + sent.begin, start + sent.end, **about)


def span_of(name: str, category: str, begin: float, end: float, **about: int) -> Span:
    """Return a span whose begin and end are given in seconds; `about` holds its arguments."""
    return Span(name, category, round(begin * NANO), round(end * NANO), about)
