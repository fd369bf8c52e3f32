"""Which ranks should do what, so that so many videos are there soonest: every way is played through.

`play` runs the programs of `scheduling.stages` against given seconds, as ranks do: in order, waiting for each
other's data and for channels that are full. `choose` compares ways of using the ranks by it: all stages
together, denoising and decoding apart (DeDiVAE, arXiv 2511.12056), and replicas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Annotated

from paradit.config.errors import InputError
from paradit.config.limits import MAX_SECONDS
from paradit.config.options import Option
from paradit.config.placement import Placement
from paradit.scheduling.stages import AHEAD, STAGES, decoder_of, steps

Seconds = Annotated[float, Option(least=0, most=MAX_SECONDS)]
Step = tuple[str, int]
"""(stage, request)."""
MARGIN = 0.03
"""How much quicker than the plainest way, in parts of its time, another must come out to be taken."""


@dataclass(frozen=True)
class Span:
    """When a request is in a stage, and on which ranks."""

    stage: str
    request: int
    ranks: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """What the stages of a request take, as measured on so many ranks."""

    ranks: Annotated[int, Option(least=1)]
    encode: Seconds
    """Of all its texts."""
    context: Seconds
    """What every rank computes of the texts before the first step."""
    step: Seconds
    """A denoising step on one rank."""
    step_together: Seconds
    """A denoising step on all ranks."""
    decode: Seconds

    def denoise(self, num_ranks: int, num_inference_steps: int) -> float:
        """On so many ranks: what one rank takes divided by them, and what sharing adds to that.

        The latter is known of all ranks only, and taken to be the same for fewer of them.
        """
        added = self.step_together - self.step / self.ranks if num_ranks > 1 else 0.0
        return self.context + num_inference_steps * (self.step / num_ranks + added)

    def of(self, placement: Placement, num_inference_steps: int) -> dict[str, float]:
        """The seconds of each stage in a placement."""
        denoise = self.denoise(len(placement.denoise_ranks), num_inference_steps)
        return {"encode": self.encode, "denoise": denoise, "decode": self.decode}


def play(placement: Placement, num_requests: int, seconds: Mapping[str, float]) -> list[Span]:
    """When each request is in which stage, on which ranks, given the seconds of the stages.

    What travels between stages takes no time.
    """
    size = placement.replica_ranks
    found = []
    for replica in range(placement.replicas):
        numbers = range(replica, num_requests, placement.replicas)
        for span in _play_replica(placement.replica, len(numbers), seconds):
            ranks = tuple(replica * size + rank for rank in span.ranks)
            found.append(replace(span, request=numbers[span.request], ranks=ranks))
    return found


def makespan(placement: Placement, num_requests: int, seconds: Mapping[str, float]) -> float:
    """From the first request's start to the last one's video."""
    return max((span.end for span in play(placement, num_requests, seconds)), default=0.0)


def _play_replica(placement: Placement, num_requests: int, seconds: Mapping[str, float]) -> Iterator[Span]:
    decoders = placement.decode_groups
    groups = {"encode": placement.encode_ranks, "denoise": placement.denoise_ranks}

    def decoder(rank: int) -> int:
        return next((number for number, group in enumerate(decoders) if rank in group), -1)

    programs = [
        deque(steps(placement.stages_of(rank), decoder(rank), len(decoders), range(num_requests)))
        for rank in range(placement.ranks)
    ]
    free = [0.0] * placement.ranks
    done: dict[Step, Span] = {}
    full: dict[int, Step] = {}
    """What must have begun before a rank that has sent goes on."""
    while any(programs):
        for step in dict.fromkeys(left[0] for left in programs if left):
            stage, request = step
            ranks = groups.get(stage) or decoders[decoder_of(request, len(decoders))]
            ended = list(_before(step, placement))
            begun = [full[rank] for rank in ranks if rank in full]
            if any(programs[rank][0] != step for rank in ranks) or not {*ended, *begun} <= done.keys():
                continue
            start = max(
                [free[rank] for rank in ranks]
                + [done[other].end for other in ended]
                + [done[other].start for other in begun]
            )
            done[step] = Span(stage, request, ranks, start, start + seconds[stage])
            yield done[step]
            for rank in ranks:
                free[rank] = done[step].end
                programs[rank].popleft()
                full.pop(rank, None)
            waits = _must_have_begun(step, placement)
            if waits is not None:
                full[ranks[0]] = waits


def _before(step: Step, placement: Placement) -> Iterator[Step]:
    """What must have ended before a step can begin."""
    stage, request = step
    if stage != "encode":
        yield STAGES[STAGES.index(stage) - 1], request
    if request and len(placement.denoise_ranks) == placement.ranks:
        yield "decode", request - 1  # where all denoise, they meet after every request


def _must_have_begun(step: Step, placement: Placement) -> Step | None:
    """What must have been taken before the rank that sends a step's result goes on: channels hold few."""
    stage, request = step
    if stage == "encode":
        sender, receivers, ahead = placement.encode_ranks[0], placement.denoise_ranks, AHEAD
    elif stage == "denoise":
        # Each decoder has a channel of its own.
        number = len(placement.decode_groups)
        sender, ahead = placement.denoise_ranks[0], AHEAD * number
        receivers = placement.decode_groups[decoder_of(request, number)]
    else:
        return None
    if set(receivers) == {sender} or request < ahead:
        return None
    return STAGES[STAGES.index(stage) + 1], request - ahead


def worth_taking(seconds: Sequence[float]) -> int:
    """Which of several ways: the first, the plainest, unless the quickest is more than `MARGIN` quicker."""
    quickest = min(range(len(seconds)), key=seconds.__getitem__)
    return quickest if seconds[quickest] < (1 - MARGIN) * seconds[0] else 0


def decoders_by_rule(ranks: int, denoise: float, decode: float) -> int:
    """How many of the ranks decode, by PipeDiT's rule (arXiv 2511.12056, DeDiVAE).

    denoise, decode: seconds of one request on one rank each. Both groups have at least one rank.
    """
    return max(1, min(ceil(decode * ranks / (decode + denoise)), ranks - 1))


def apart(base: Placement, num_decode: int) -> Placement:
    """The last ranks decode, the first of them encodes, and the others denoise."""
    first = base.ranks - num_decode
    return replace(base, denoise=tuple(range(first)), decode=tuple(range(first, base.ranks)))


def ways(base: Placement, num_requests: int) -> list[Placement]:
    """The ways of using the ranks of `base`, which has all stages together; the plainest first."""
    ranks, changes = range(base.ranks), list[Callable[[], Placement]]()
    changes.append(lambda: replace(base, encode=(0,), decode=tuple(ranks)))
    changes += [partial(apart, base, number) for number in ranks[1:]]
    changes += [
        partial(replace, base, replicas=number)
        for number in range(2, min(base.ranks, num_requests) + 1)
        if base.ranks % number == 0
    ]
    found = [base]
    for change in changes:
        with suppress(InputError):  # such as fewer ranks than the branches that they were to divide
            found.append(change())
    return list(dict.fromkeys(found))


def name_of(placement: Placement) -> str:
    """Of one of `ways`, as a person writes it."""
    if placement.replicas > 1:
        return f"{placement.replicas} replicas"
    if placement.decode is None:
        return "together"
    shared = placement.decode_degree > 1
    if placement.decode == placement.denoise_ranks:
        return "together, decoding shared" if shared else "together, each decodes"
    number = len(placement.decode)
    if shared:
        return f"apart, {number} of {placement.ranks} ranks share a decode"
    return f"apart, {number} of {placement.ranks} ranks {'decodes' if number == 1 else 'decode'}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The quickest of the ways that were compared."""

    placement: Placement
    seconds: dict[str, float]
    """The makespan of each way that was compared, by name."""
    reason: str
    """One line: the way, what it takes, and what the best of each other kind takes."""
    form: str = ""
    """One line: its form of attention, and what others would take; empty where no choice of it was open."""
    why: tuple[str, ...] = ()
    """Lines: what each of its other choices is, and what it would take with another."""


def choose(
    base: Placement,
    num_requests: int,
    num_inference_steps: int,
    costs: StageSeconds,
    spare_bytes: Callable[[Placement], int],
) -> Choice:
    """The quickest of `ways` for so many requests; of several such the plainest.

    Only ways that there is memory for are compared; where that is none, the one that lacks least is taken.
    spare_bytes: what a placement leaves of the fullest device's memory; it raises InputError for one that
    cannot be.
    """
    possible = affordable(base, num_requests, spare_bytes)
    seconds = {
        placement: makespan(placement, num_requests, costs.of(placement, num_inference_steps))
        for placement in possible
    }
    best = min(seconds, key=seconds.__getitem__)
    by_rule = decoders_by_rule(base.ranks, costs.denoise(1, num_inference_steps), costs.decode)
    return Choice(
        placement=best,
        seconds={name_of(placement): took for placement, took in seconds.items()},
        reason=_reason(best, seconds, num_requests, by_rule),
    )


def affordable(
    base: Placement, num_requests: int, spare_bytes: Callable[[Placement], int]
) -> list[Placement]:
    """Those of `ways` that there is memory for, or the one that lacks least; see `choose`."""
    spare = {}
    for placement in ways(base, num_requests):
        with suppress(InputError):
            spare[placement] = spare_bytes(placement)
    if not spare:
        spare_bytes(base)  # says why
    fitting = [placement for placement, left in spare.items() if left >= 0]
    return fitting or [max(spare, key=spare.__getitem__)]


def _reason(best: Placement, seconds: Mapping[Placement, float], num_requests: int, by_rule: int) -> str:
    prompts = "1 prompt" if num_requests == 1 else f"{num_requests} prompts"
    shown = _best_of_each_kind(seconds)
    others = [f"{name_of(way)} {seconds[way]:.3g} s" for way in shown if way != best]
    others += [
        f"{name_of(way)}, by PipeDiT's rule, {took:.3g} s"
        for way, took in seconds.items()
        if _kind(way) == "apart" and way.decode and len(way.decode) == by_rule and way not in shown
    ]
    compared = "; ".join(others) or "there is memory for no other way"
    return f"{name_of(best)}: about {seconds[best]:.3g} s for {prompts} ({compared})"


def _best_of_each_kind(seconds: Mapping[Placement, float]) -> list[Placement]:
    best: dict[str, Placement] = {}
    for way in sorted(seconds, key=seconds.__getitem__):
        best.setdefault(_kind(way), way)
    return list(best.values())


def _kind(placement: Placement) -> str:
    if placement.replicas > 1:
        return "replicas"
    return "apart" if name_of(placement).startswith("apart") else "together"
