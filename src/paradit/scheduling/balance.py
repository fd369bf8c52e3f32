"""Choose how the ranks divide the stages so that all videos finish soonest, by simulating every candidate.

A candidate is a placement: it says which ranks run which stages. `simulate` runs the ranks' programs
(`scheduling.stages`) with given durations of the stages. Each rank works through its stages in order. It
waits for other ranks' data, and for room in channels that are full. `choose` compares the resulting times of
the candidate placements: all stages on the same ranks, denoising and decoding on separate ranks (DeDiVAE,
arXiv 2511.12056), and data parallel replicas.
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
from paradit.scheduling.stages import AHEAD, decoder_of, steps

Seconds = Annotated[float, Option(least=0, most=MAX_SECONDS)]
Step = tuple[str, int]
"""Unit of work of a rank: one stage of one request, as (stage name, index of the request)."""
MARGIN = 0.03
"""Smallest fraction of time that another placement must save to be chosen instead of the simplest one. (A
placement says which ranks do what.)"""


@dataclass(frozen=True)
class Span:
    """Interval, in seconds, in which some ranks work on one stage of a request."""

    stage: str
    request: int
    ranks: tuple[int, ...]
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """Measured seconds of a request's stages, to compute the times of placements (which ranks do what)."""

    ranks: Annotated[int, Option(least=1)]
    encode: Seconds
    """Seconds to encode all texts of a request."""
    context: Seconds
    """Seconds that every denoise rank takes to process the prompt embeddings before the first step."""
    step: Seconds
    """Seconds of a denoising step on one rank alone."""
    step_together: Seconds
    """Seconds of a denoising step that all `ranks` ranks share."""
    decode: Seconds
    conditions: Seconds = 0.0
    """Seconds to encode a request's pictures; 0 if it has none."""

    def denoise(self, num_ranks: int, num_inference_steps: int) -> float:
        """Return the seconds of denoising on `num_ranks` ranks: one rank's time divided, plus overhead.

        The overhead is measured only with a step that all ranks share, and taken to be the same for fewer
        ranks.
        """
        # What sharing a step costs: its time on all ranks, less what it would be if nothing had to travel.
        added = self.step_together - self.step / self.ranks if num_ranks > 1 else 0.0
        return self.context + num_inference_steps * (self.step / num_ranks + added)

    def of(self, placement: Placement, num_inference_steps: int) -> dict[str, float]:
        """Return a mapping from each stage to its seconds, for a request that runs on a placement."""
        denoise = self.denoise(len(placement.denoise_ranks), num_inference_steps)
        pictures = {"conditions": self.conditions} if self.conditions else {}
        return {"encode": self.encode, **pictures, "denoise": denoise, "decode": self.decode}


def simulate(placement: Placement, num_requests: int, seconds: Mapping[str, float]) -> list[Span]:
    """Simulate requests on a placement (which ranks do what), and return an interval for each stage of each.

    seconds: duration of each stage. Data between stages are taken to travel in no time.
    """
    size = placement.replica_ranks
    found = []
    for replica in range(placement.replicas):
        numbers = range(replica, num_requests, placement.replicas)
        for span in _simulate_replica(placement.replica, len(numbers), seconds):
            ranks = tuple(replica * size + rank for rank in span.ranks)
            found.append(replace(span, request=numbers[span.request], ranks=ranks))
    return found


def makespan(placement: Placement, num_requests: int, seconds: Mapping[str, float]) -> float:
    """Return the simulated seconds from the first request's start until the last video is finished."""
    return max((span.end for span in simulate(placement, num_requests, seconds)), default=0.0)


def _simulate_replica(
    placement: Placement, num_requests: int, seconds: Mapping[str, float]
) -> Iterator[Span]:
    """Yield the interval of each stage of the requests of one replica, in the order in which they are placed.

    With `encode=0 denoise=0 decode=1`, 1 s to encode, 1 s to denoise and 5 s to decode (a cell is a second):

        rank 0  |e0|d0|e1|d1|e2|d2|e3|d3|e4|d4|.....|e5|d5|
        rank 1        |   decode 0   |   decode 1   |   decode 2   |

    A stage starts when the last of three things has happened: its ranks are free; the stages that it needs
    have ended (`_before`); and, if one of its ranks left a result in a channel that was full by then, the
    stage that takes an older result out of this channel has begun (`_must_have_begun`). Here rank 0 waits
    before `e5`: the latents of requests 2, 3 and 4 are more than the channel holds, until `decode 2` begins.
    """
    has_pictures = "conditions" in seconds
    programs = _programs(placement, num_requests, has_pictures)
    free_at = [0.0] * placement.ranks
    placed: dict[Step, Span] = {}
    makes_room: dict[int, Step] = {}
    """For each rank whose outgoing channel is full: the stage that makes room in it when it begins."""
    # A stage can be placed in time once it comes next in the programs of all its ranks, and all that it waits
    # for is placed. Each pass places those that can be, so the order of ranks does not matter.
    while any(programs):
        for step in dict.fromkeys(left[0] for left in programs if left):  # once, even if ranks share it
            stage, request = step
            ranks = _ranks_of(step, placement)
            must_have_ended = list(_before(step, placement, has_pictures))
            must_have_begun = [makes_room[rank] for rank in ranks if rank in makes_room]
            is_next = all(programs[rank][0] == step for rank in ranks)
            if not is_next or not {*must_have_ended, *must_have_begun} <= placed.keys():
                continue
            start = max(
                [free_at[rank] for rank in ranks]
                + [placed[other].end for other in must_have_ended]
                + [placed[other].start for other in must_have_begun]
            )
            span = placed[step] = Span(stage, request, ranks, start, start + seconds[stage])
            yield span
            for rank in ranks:
                free_at[rank] = span.end
                programs[rank].popleft()
                makes_room.pop(rank, None)
            takes_result = _must_have_begun(step, placement)
            if takes_result is not None:
                makes_room[ranks[0]] = takes_result  # a group's first rank sends its result


def _programs(placement: Placement, num_requests: int, has_pictures: bool) -> list[deque[Step]]:
    """Return what each rank of one replica does, in order."""
    decoders, requests = placement.decode_groups, range(num_requests)
    pictures = requests if has_pictures else ()

    def decoder(rank: int) -> int:
        return next((number for number, group in enumerate(decoders) if rank in group), -1)

    return [
        deque(steps(placement.work_of(rank), decoder(rank), len(decoders), requests, with_pictures=pictures))
        for rank in range(placement.ranks)
    ]


def _ranks_of(step: Step, placement: Placement) -> tuple[int, ...]:
    """Return the ranks that work together on a stage of a request."""
    stage, request = step
    if stage in ("conditions", "decode"):
        decoders = placement.decode_groups
        group = decoders[decoder_of(request, len(decoders))]
        return group if stage == "decode" else group[:1]
    return placement.encode_ranks if stage == "encode" else placement.denoise_ranks


def _before(step: Step, placement: Placement, has_pictures: bool) -> Iterator[Step]:
    """Yield the (stage, request) pairs that must have ended before a stage of a request can begin."""
    stage, request = step
    if stage == "decode":
        yield "denoise", request
    elif stage == "denoise":
        yield "encode", request
        if has_pictures:
            yield "conditions", request
    if request and len(placement.denoise_ranks) == placement.ranks:
        yield "decode", request - 1  # if all ranks denoise, they finish the previous request first


def _must_have_begun(step: Step, placement: Placement) -> Step | None:
    """Return the (stage, request) that must begin to make room for `step`'s result; None if there is room.

    A result waits in a channel (queue of tensors between ranks), which holds only a few. If the channel is
    full, the sending rank waits until a later stage takes a result out of it.
    """
    stage, request = step
    if stage == "decode":
        return None
    sender, receivers = _ranks_of(step, placement)[0], placement.denoise_ranks
    if stage == "denoise":
        receivers = _ranks_of(("decode", request), placement)
    # Each decoder has a channel of its own, and gets every `number`-th request.
    ahead = AHEAD * len(placement.decode_groups)
    if set(receivers) == {sender} or request < ahead:  # nothing travels, or the channel is not yet full
        return None
    return "decode" if stage == "denoise" else "denoise", request - ahead


def worth_taking(seconds: Sequence[float]) -> int:
    """Return the index of the fastest placement, or 0 if it is hardly faster than the first one (`MARGIN`).

    seconds: time of each placement, the simplest first.
    """
    quickest = min(range(len(seconds)), key=seconds.__getitem__)
    return quickest if seconds[quickest] < (1 - MARGIN) * seconds[0] else 0


def decoders_by_rule(ranks: int, denoise: float, decode: float) -> int:
    """Return how many of the ranks should only decode, by PipeDiT's rule (DeDiVAE, arXiv 2511.12056).

    denoise, decode: seconds to denoise, and to decode, one request on a single rank. At least one rank
    denoises, and at least one decodes.
    """
    return max(1, min(ceil(decode * ranks / (decode + denoise)), ranks - 1))


def apart(base: Placement, num_decode: int) -> Placement:
    """Return a placement in which the last `num_decode` ranks of `base` decode, and all others denoise.

    The first of the decode ranks also encodes.
    """
    first = base.ranks - num_decode
    return replace(base, denoise=tuple(range(first)), decode=tuple(range(first, base.ranks)))


def candidate_placements(base: Placement, num_requests: int) -> list[Placement]:
    """Return the candidate placements (which ranks do what) on the ranks of `base`, the simplest first.

    In `base`, all ranks run all stages. Placements that are not valid are left out.
    """
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
        with suppress(InputError):  # for example, fewer ranks than guidance branches
            found.append(change())
    return list(dict.fromkeys(found))


def name_of(placement: Placement) -> str:
    """Return a short name for a placement that `candidate_placements` returns, such as "2 replicas"."""
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
    """Chosen placement (which ranks do what), with times of all placements compared, and the reasons."""

    placement: Placement
    seconds: dict[str, float]
    """Simulated seconds until all videos are finished, by name of each placement that was compared."""
    reason: str
    """Text of one line for people: the chosen placement, its time, and the best time of each other kind."""
    form: str = ""
    """Text of one line for people that names the chosen attention form (such as Ulysses or ring), and the
    times of other forms; empty if no other form could be chosen."""
    why: tuple[str, ...] = ()
    """Lines of text for people on other settings: the value chosen, and the time that another value takes."""


def choose(
    base: Placement,
    num_requests: int,
    num_inference_steps: int,
    costs: StageSeconds,
    spare_bytes: Callable[[Placement], int],
) -> Choice:
    """Choose the candidate placement that finishes all requests soonest; in a tie, the simplest.

    Only placements that fit in memory are compared; if none fits, the one that lacks least memory is chosen.
    spare_bytes: function that returns the bytes that a placement leaves free on the fullest device; it raises
    InputError for a placement that is not valid.
    """
    possible = affordable(base, num_requests, spare_bytes)
    seconds = {
        placement: makespan(placement, num_requests, costs.of(placement, num_inference_steps))
        for placement in possible
    }
    best = min(seconds, key=seconds.__getitem__)  # the first of equal ones, which is the simplest
    by_rule = decoders_by_rule(base.ranks, costs.denoise(1, num_inference_steps), costs.decode)
    return Choice(
        placement=best,
        seconds={name_of(placement): took for placement, took in seconds.items()},
        reason=_reason(best, seconds, num_requests, by_rule),
    )


def affordable(
    base: Placement, num_requests: int, spare_bytes: Callable[[Placement], int]
) -> list[Placement]:
    """Return the candidate placements that fit in memory, or else only the one that lacks least memory.

    spare_bytes: function that returns the bytes that a placement leaves free on the fullest device. Raises
    InputError if no placement is valid.
    """
    spare = {}
    for placement in candidate_placements(base, num_requests):
        with suppress(InputError):
            spare[placement] = spare_bytes(placement)
    if not spare:
        spare_bytes(base)  # raises the error that says why
    fitting = [placement for placement, left in spare.items() if left >= 0]
    return fitting or [max(spare, key=spare.__getitem__)]


def _reason(best: Placement, seconds: Mapping[Placement, float], num_requests: int, by_rule: int) -> str:
    prompts = "1 prompt" if num_requests == 1 else f"{num_requests} prompts"
    shown = _best_of_each_kind(seconds)
    others = [f"{name_of(placement)} {seconds[placement]:.3g} s" for placement in shown if placement != best]
    others += [
        f"{name_of(placement)}, by PipeDiT's rule, {took:.3g} s"
        for placement, took in seconds.items()
        if _kind(placement) == "apart"
        and placement.decode
        and len(placement.decode) == by_rule
        and placement not in shown
    ]
    compared = "; ".join(others) or "nothing else fits in memory"
    return f"{name_of(best)}: about {seconds[best]:.3g} s for {prompts} ({compared})"


def _best_of_each_kind(seconds: Mapping[Placement, float]) -> list[Placement]:
    best: dict[str, Placement] = {}
    for placement in sorted(seconds, key=seconds.__getitem__):
        best.setdefault(_kind(placement), placement)
    return list(best.values())


def _kind(placement: Placement) -> str:
    if placement.replicas > 1:
        return "replicas"
    return "apart" if name_of(placement).startswith("apart") else "together"
