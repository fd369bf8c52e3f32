"""Simulated schedules of stages, with given seconds: against cases by hand, bounds, another simulation."""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterator
from itertools import count, pairwise, product
from random import Random
from typing import Any

import pytest

from messages import says
from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups
from paradit.scheduling.balance import (
    Choice,
    StageSeconds,
    apart,
    candidate_placements,
    choose,
    decoders_by_rule,
    makespan,
    name_of,
    simulate,
)
from paradit.scheduling.stages import AHEAD, PLACED, decoder_of
from paradit.scheduling.stages import steps as each_step

GROUPS = [
    (1, ""),
    (3, ""),
    (3, "decode=0-2 encode=0"),
    (2, "denoise=0 decode=1"),
    (2, "denoise=0-1 decode=1 encode=0"),
    (3, "denoise=0 decode=1-2"),
    (3, "denoise=1-2 decode=0 encode=1"),
    (4, "denoise=1-2 decode=0,3 encode=1"),
    (4, "denoise=0-2 decode=2,3 encode=3"),
    (4, "denoise=0 decode=1-3"),
]


def placed(ranks: int, groups: str) -> Placement:
    return Placement.of(ranks=ranks, **(read_groups(groups) if groups else {}))


def seconds(encode: float, denoise: float, decode: float) -> dict[str, float]:
    return {"encode": encode, "denoise": denoise, "decode": decode}


def costs(step: float, together: float, decode: float, ranks: int, encode: float = 0.0) -> StageSeconds:
    return StageSeconds(
        ranks=ranks, encode=encode, context=0.0, step=step, step_together=together, decode=decode
    )


@pytest.mark.parametrize(
    ("ranks", "groups", "stages", "requests", "expected"),
    [
        (1, "", (1, 5, 2), 3, 3 * 8),
        (2, "", (1, 5, 2), 3, 3 * 8),
        # The first request fills the pipeline, the others follow at the slower stage's pace.
        (2, "denoise=0 decode=1", (0, 5, 2), 4, 4 * 5 + 2),
        (2, "denoise=0 decode=1", (0, 2, 5), 4, 2 + 4 * 5),
        # The rank that decodes has encoded three before it first decodes, and one after each decode.
        (2, "denoise=0 decode=1", (1, 5, 2), 4, 1 + 4 * 5 + 2),
        (2, "denoise=0 decode=1", (1, 2, 5), 2, 1 + 2 + 5 + 5),
        # Two decoders in turn.
        (3, "denoise=0 decode=1-2", (0, 2, 4), 6, 6 * 2 + 4),
        (3, "denoise=0 decode=1-2", (0, 1, 4), 5, 1 + 3 * 4),
        # A decoder that also denoises delays the others as much as if all stages were together.
        (2, "denoise=0-1 decode=1 encode=0", (0, 3, 2), 3, 3 * 5),
    ],
)
def test_cases_worked_by_hand(
    ranks: int, groups: str, stages: tuple[float, float, float], requests: int, expected: float
) -> None:
    assert makespan(placed(ranks, groups), requests, seconds(*stages)) == expected


def test_a_slow_decoder_pushes_back() -> None:
    def starts(groups: str) -> list[float]:
        spans = simulate(placed(2, groups), 6, seconds(0, 1, 10))
        return [span.start for span in spans if span.stage == "denoise"]

    # The channel holds two, and one more is in progress: the fifth begins while the second is decoded.
    assert starts("denoise=0 decode=1 encode=0") == [0, 1, 2, 3, 11, 21]
    # The rank that decodes has encoded no more than three before the first decode.
    assert starts("denoise=0 decode=1") == [0, 1, 2, 11, 21, 31]


def test_replicas_are_as_many_runs_side_by_side() -> None:
    two = Placement(ranks=4, replicas=2)
    spans = simulate(two, 5, seconds(1, 4, 2))
    assert {span.request: span.ranks for span in spans if span.stage == "denoise"} == {
        0: (0, 1), 1: (2, 3), 2: (0, 1), 3: (2, 3), 4: (0, 1),
    }  # fmt: skip
    assert {span.ranks for span in spans if span.stage == "decode"} == {(0,), (2,)}
    assert makespan(two, 5, seconds(1, 4, 2)) == 3 * 7
    assert makespan(Placement(ranks=3, replicas=3), 1, seconds(1, 4, 2)) == 7
    assert simulate(two, 0, seconds(1, 4, 2)) == []


def random_cases(number: int) -> Iterator[tuple[Placement, int, dict[str, float]]]:
    draw = Random(0)
    for index in range(number):
        ranks, groups = GROUPS[index % len(GROUPS)]
        # Whole numbers create ties, which a simulation may resolve wrongly.
        stages = [draw.choice([draw.uniform(0.1, 5), float(draw.randint(1, 4))]) for _ in range(3)]
        pictures = {"conditions": draw.uniform(0.1, 3)} if index % 3 == 0 else {}
        yield placed(ranks, groups), draw.randint(1, 9), seconds(*stages) | pictures


def test_bounds_and_conserved_work() -> None:
    for placement, requests, stages in random_cases(200):
        spans = simulate(placement, requests, stages)
        assert len(spans) == len(stages) * requests
        total = makespan(placement, requests, stages)
        busy = [0.0] * placement.ranks
        for span in spans:
            assert span.end - span.start == pytest.approx(stages[span.stage])
            for rank in span.ranks:
                busy[rank] += stages[span.stage]
        own = sum(stages.values())
        beside = min(stages["encode"], stages.get("conditions", 0.0))  # on ranks of their own
        assert own - beside <= total + 1e-9
        assert max(busy) <= total + 1e-9
        assert total <= requests * own + 1e-9
        for rank in range(placement.ranks):
            mine = sorted((span.start, span.end) for span in spans if rank in span.ranks)
            assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(mine))
        when = {(span.stage, span.request): span for span in spans}
        for request, (before, after) in product(range(requests), [PLACED[:2], PLACED[1:]]):
            assert when[before, request].end <= when[after, request].start + 1e-9


INPUTS = ("encode", "conditions")
"""Stages whose results go to the ranks that denoise."""


class Events:
    """Independent second simulation, with ranks as processes that work, send, receive and meet."""

    def __init__(self, placement: Placement, requests: int, stages: dict[str, float]) -> None:
        self.placement, self.requests, self.stages = placement, requests, stages
        self.now, self.order, self.queue = 0.0, count(), list[tuple[float, int, Any]]()
        self.waiting: list[tuple[Any, Any]] = []
        self.sent: set[Any] = set()
        self.taken: dict[Any, set[int]] = {}
        self.met: dict[Any, set[int]] = {}

    def run(self) -> float:
        for rank in range(self.placement.ranks):
            self.go_on(self.rank(rank))
        while self.queue:
            self.now, _, process = heapq.heappop(self.queue)
            self.go_on(process)
        assert not self.waiting, "somebody waits for ever"
        return self.now

    def go_on(self, process: Any) -> None:
        """Run a process until it works, which takes time, or waits; then continue others that can go on."""
        for wanted in process:
            if isinstance(wanted, float):
                heapq.heappush(self.queue, (self.now + wanted, next(self.order), process))
                break
            if not wanted():
                self.waiting.append((wanted, process))
                break
        for wanted, other in list(self.waiting):
            if (wanted, other) in self.waiting and wanted():
                self.waiting.remove((wanted, other))
                self.go_on(other)

    def rank(self, rank: int) -> Iterator[Any]:
        placement, decoders = self.placement, self.placement.decode_ranks
        index = decoders.index(rank) if rank in decoders else -1
        requests, before = range(self.requests), [one for one in self.stages if one in INPUTS]
        pictures = requests if "conditions" in self.stages else ()
        work = placement.work_of(rank)
        steps = deque(each_step(work, index, len(decoders), requests, with_pictures=pictures))
        leaving: dict[Any, deque[Any]] = defaultdict(deque)
        while steps:
            stage, request = steps.popleft()
            decoder = decoders[decoder_of(request, len(decoders))]
            for source in {"denoise": before, "decode": ["denoise"]}.get(stage, []):
                message = (source, request)
                yield lambda message=message: message in self.sent
                self.taken.setdefault(message, set()).add(rank)
            if stage == "denoise":
                yield from self.meet(rank, (stage, request), set(placement.denoise_ranks))
            yield self.stages[stage]
            if stage in INPUTS:
                depth = AHEAD * len(decoders) if stage == "encode" else AHEAD
                others = {*placement.denoise_ranks} - {rank}
                yield from self.send((stage, request), others, leaving[stage], depth)
            if stage == "denoise" and rank == placement.denoise_ranks[0]:
                yield from self.send((stage, request), {decoder} - {rank}, leaving[decoder], AHEAD)
            last = not steps or steps[0][1] != request
            if last and len(placement.denoise_ranks) == placement.ranks:
                yield from self.meet(rank, ("end", request), set(range(placement.ranks)))

    def send(self, message: Any, others: set[int], leaving: deque[Any], depth: int) -> Iterator[Any]:
        self.sent.add(message)
        if others:
            leaving.append((message, others))
        while len(leaving) > depth:
            oldest, receivers = leaving.popleft()
            yield lambda one=oldest, by=receivers: by <= self.taken.get(one, set())

    def meet(self, rank: int, name: Any, everyone: set[int]) -> Iterator[Any]:
        self.met.setdefault(name, set()).add(rank)
        yield lambda: self.met[name] == everyone


def test_a_second_simulation_agrees() -> None:
    for placement, requests, stages in random_cases(400):
        expected = Events(placement, requests, stages).run()
        assert makespan(placement, requests, stages) == pytest.approx(expected, rel=1e-12), (
            placement,
            requests,
            stages,
        )


@pytest.mark.parametrize(
    ("ranks", "denoise", "decode", "expected"),
    [
        (8, 256.0, 1.2, 1),  # the paper's Figure 2a: 32 s on 8 GPUs, 1.2 s
        (4, 3.0, 1.0, 1),
        (4, 3.0, 1.1, 2),
        (8, 1.0, 1.0, 4),
        (2, 1.0, 9.0, 1),  # at least one denoises
    ],
)
def test_the_rule_of_the_paper(ranks: int, denoise: float, decode: float, expected: int) -> None:
    assert decoders_by_rule(ranks, denoise, decode) == expected


def test_seconds_on_fewer_ranks() -> None:
    measured = StageSeconds(ranks=4, encode=0.5, context=1, step=8, step_together=2.5, decode=3)
    assert measured.denoise(1, 10) == 1 + 10 * 8
    assert measured.denoise(4, 10) == 1 + 10 * 2.5
    assert measured.denoise(2, 10) == 1 + 10 * (8 / 2 + 0.5)
    assert measured.of(apart(Placement(ranks=4), 2), 10) == seconds(0.5, 46, 3)


def test_the_ways_that_there_are() -> None:
    assert [name_of(candidate) for candidate in candidate_placements(Placement(ranks=4), 9)] == [
        "together",
        "together, each decodes",
        "apart, 1 of 4 ranks decodes",
        "apart, 2 of 4 ranks decode",
        "apart, 3 of 4 ranks decode",
        "2 replicas",
        "4 replicas",
    ]
    assert [name_of(candidate) for candidate in candidate_placements(Placement(ranks=4), 2)][-2:] == [
        "apart, 3 of 4 ranks decode",
        "2 replicas",
    ]
    # An odd number of ranks cannot have the two branches apart.
    assert [name_of(candidate) for candidate in candidate_placements(Placement(ranks=4, cfg_degree=2), 9)][
        2:
    ] == [
        "apart, 2 of 4 ranks decode",
        "2 replicas",
    ]


def chosen(measured: StageSeconds, requests: int, spare: Any = lambda _: 0, **fields: Any) -> Choice:
    return choose(Placement(ranks=measured.ranks, **fields), requests, 10, measured, spare)


def test_choices_worked_by_hand() -> None:
    # Sharing gains nothing, and memory is unlimited.
    assert name_of(chosen(costs(1, 1, 5, ranks=2), 10).placement) == "2 replicas"
    # One prompt, and sharing that costs nothing.
    choice = chosen(costs(1, 0.5, 1, ranks=2), 1)
    assert name_of(choice.placement) == "together"
    assert says(choice.reason, "together: .. 6 s .. 1 prompt .. apart, 1 of 2 ranks decodes 11 s")

    # A whole model does not fit on a rank: 10 x (10 s / 2 + 5 s) together, 10 x 10 s + 5 s apart.
    def only_apart(placement: Placement) -> int:
        return -1 if "decode" in placement.stages_of(placement.denoise_ranks[0]) else 0

    choice = chosen(costs(1, 0.5, 5, ranks=2), 10, only_apart)
    assert choice.placement == Placement(ranks=2, denoise=(0,), decode=(1,))
    assert says(choice.reason, "apart, 1 of 2 ranks decodes: .. 105 s .. 10 prompts .. memory")
    # Nothing fits: the placement that lacks least is chosen.
    choice = chosen(costs(1, 0.5, 5, ranks=2), 10, lambda placement: only_apart(placement) - 1)
    assert choice.placement == Placement(ranks=2, denoise=(0,), decode=(1,))


def test_what_cannot_be_is_not_chosen() -> None:
    def no_replicas(placement: Placement) -> int:
        if placement.replicas > 1:
            raise InputError("too many")
        return 0

    assert chosen(costs(1, 1, 5, ranks=2), 10, no_replicas).placement.replicas == 1


def test_never_behind_any_that_was_compared() -> None:
    draw = Random(1)
    for _ in range(150):
        ranks = draw.randint(2, 8)
        step = draw.uniform(0.1, 2)
        measured = costs(
            step, draw.uniform(step / ranks, step), draw.uniform(0.1, 20), ranks, encode=draw.uniform(0, 1)
        )
        requests = draw.randint(1, 12)
        memory: dict[Any, Any] = {}

        def spare(placement: Placement, memory: dict[str, int] = memory) -> int:
            return memory.setdefault(name_of(placement), draw.choice([-1, 1, 1]))

        choice = chosen(measured, requests, spare)
        took = makespan(choice.placement, requests, measured.of(choice.placement, 10))
        assert took == choice.seconds[name_of(choice.placement)] == min(choice.seconds.values())
        fitting = [
            candidate
            for candidate in candidate_placements(Placement(ranks=ranks), requests)
            if memory[name_of(candidate)] >= 0
        ]
        if fitting:
            assert set(choice.seconds) == {name_of(candidate) for candidate in fitting}
        by_rule = apart(
            Placement(ranks=ranks), decoders_by_rule(ranks, measured.denoise(1, 10), measured.decode)
        )
        if by_rule in fitting:
            assert took <= makespan(by_rule, requests, measured.of(by_rule, 10))
