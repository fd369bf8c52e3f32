"""A simulated run as spans of each rank, in the form of a trace (`trace.merge.chrome_trace`).

Stages and steps of the whole run; messages, waits and layers of the first step only, since the others are
like it. Of a long video every block-step with its messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paradit.planner.events import Played
from paradit.planner.simulate import Simulated, Simulator
from paradit.scheduling import balance
from paradit.trace.merge import Span
from paradit.trace.spans import CHANNEL, EXCHANGE, LAYER, MESSAGE, STAGE, STEP

NANO = 1e9


def timeline(simulator: Simulator, simulated: Simulated, num_requests: int) -> dict[int, list[Span]]:
    """The spans of each rank, in nanoseconds from 0."""
    way = simulated.way
    spans = balance.play(way.placement, num_requests, simulated.stages)
    long = way.method == "dualparal"
    by_rank: dict[int, list[Span]] = {rank: [] for rank in range(way.placement.ranks)}
    denoised = [one for one in spans if one.stage == "denoise"]
    for one in spans:
        start = one.start
        if long and one.stage == "decode":
            # It has begun with the first block.
            start = next(other.start for other in denoised if other.request == one.request)
        for rank in one.ranks:
            # A rank that decodes blocks as it makes them is in one stage for both, as in the engine.
            both = long and one.stage == "denoise" and "decode" in way.placement.stages_of(rank)
            if not both:
                by_rank[rank].append(_span(one.stage, STAGE, start, one.end, request=one.request))
    if long:
        _add_blocks(by_rank, simulator, simulated, denoised)
    else:
        _add_steps(by_rank, simulator, simulated, denoised)
    return by_rank


def _add_steps(
    by_rank: dict[int, list[Span]], simulator: Simulator, simulated: Simulated, denoised: list[balance.Span]
) -> None:
    steps = simulator.request.num_inference_steps
    assert steps
    for one in denoised:
        length = (one.end - one.start) / steps
        for number in range(steps):
            begin = one.start + number * length
            for rank in one.ranks:
                by_rank[rank].append(_span(f"step {number + 1}", STEP, begin, begin + length))
    played, ranks = simulator.played_step(simulated.way, simulated.choice)
    first = min(one.start for one in denoised)
    for rank, span in _played_spans(played, [(rank,) for rank in ranks], first, LAYER, EXCHANGE):
        by_rank[rank].append(span)


def _add_blocks(
    by_rank: dict[int, list[Span]], simulator: Simulator, simulated: Simulated, denoised: list[balance.Span]
) -> None:
    placement = simulated.way.placement
    video, size = simulator.long_video(simulated.way), placement.replica_ranks
    played = video.played()
    # Of ranks that share tokens the first speaks for all.
    teams = {team[0]: team for team in video.steps.teams}
    programs = [teams.get(rank, (rank,)) for rank in range(placement.ranks)]
    for one in denoised:
        replica = one.ranks[0] // size
        start = one.start + simulator.context
        for rank, span in _played_spans(played, programs, start, STEP, CHANNEL):
            if rank // size == replica:
                by_rank[rank].append(span)


def _played_spans(
    played: Played, ranks: Iterable[Sequence[int]], start: float, computing: str, waiting: str
) -> Iterator[tuple[int, Span]]:
    """(rank, span) of what was played from `start` on. ranks: of the cluster, which each program is of."""
    numbered = {f"rank {place}": of for place, of in enumerate(ranks)}
    for category, uses in ((computing, played.uses), (waiting, played.waits)):
        for use in uses:
            for rank in numbered.get(use.resource, ()) if use.end > use.begin else ():
                yield rank, _span(use.name, category, start + use.begin, start + use.end)
    for sent in played.sent:
        message = sent.message
        for place, rank in enumerate(message.ranks):
            out = round(sum(size for to, size in enumerate(message.table[place]) if to != place))
            came = round(sum(row[place] for source, row in enumerate(message.table) if source != place))
            if out or came:
                about = {"sent": out, "received": came}
                yield rank, _span(message.name, MESSAGE, start + sent.begin, start + sent.end, **about)


def _span(name: str, category: str, begin: float, end: float, **about: int) -> Span:
    return Span(name, category, round(begin * NANO), round(end * NANO), about)
