"""Which rank does what, in order, where layers are divided over ranks and block-steps flow through them.

Rank 0 embeds, has the first layers, and holds all latents and their solvers; the last rank has the last
layers and the head, and sends predictions back. Every rank computes the block-steps in the queue's order.
Several ranks may do together what one rank does here: a stage (`StageGrid`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import accumulate, takewhile

from paradit.config.errors import InputError
from paradit.scheduling.block_queue import BlockQueue, BlockStep

WELL_USED = 0.7
"""Stages that are busy for so much of the time, of what the fewest would be, are not made groups: those have
an exchange in every layer."""
MANY_BLOCKS = 64
"""As many show how well ranks are used; a longer video uses them as well."""


@dataclass(frozen=True)
class StageGrid:
    """Where ranks stand: stage by stage, in each by guidance branch, in each by the share of its tokens.

    A rank hands on to the one at the same place of the next stage, which has the same branch and tokens.
    """

    num_stages: int = 1
    cfg_degree: int = 1
    """2: each guidance branch has its own ranks."""
    sharers: int = 1
    """Ranks that share a branch's tokens (sequence parallelism)."""

    @property
    def stage_ranks(self) -> int:
        """How many ranks a stage has."""
        return self.cfg_degree * self.sharers

    @property
    def num_ranks(self) -> int:
        return self.num_stages * self.stage_ranks

    def stage(self, rank: int) -> int:
        return rank // self.stage_ranks

    def branch(self, rank: int) -> int:
        return rank % self.stage_ranks // self.sharers

    def place(self, rank: int) -> int:
        """Among those that share tokens."""
        return rank % self.sharers

    def groups(self) -> list[list[int]]:
        """The ranks that share tokens."""
        starts = range(0, self.num_ranks, self.sharers)
        return [list(range(start, start + self.sharers)) for start in starts]


@dataclass(frozen=True)
class Compute:
    """Take a block-step through this rank's layers."""

    step: BlockStep


@dataclass(frozen=True)
class Collect:
    """Wait for a block-step's prediction, the oldest that is missing, and take the solver's step with it."""

    step: BlockStep


Operation = Compute | Collect


def in_flight(num_stages: int) -> int:
    """How many block-steps rank 0 begins, at most, before it collects the oldest.

    Twice what the stages compute at a time: as many may be travelling. A channel back to rank 0 that holds
    as many never fills, so that no rank waits for one that waits for it.
    """
    return 2 * num_stages


def program(
    queue: BlockQueue,
    num_stages: int,
    rank: int,
    first_round: int = 0,
    goes_on: Callable[[int], bool] = lambda _: True,
) -> Iterator[Operation]:
    """What a rank does, in order, from a round on; all rounds before are over. Rank 0 alone collects.

    goes_on: whether there is a round, asked when it is come to.
    """
    steps = takewhile(lambda step: goes_on(step.round), queue.steps(first_round))
    if rank > 0:
        yield from (Compute(step) for step in steps)
        return
    missing: deque[BlockStep] = deque()
    for step in steps:
        needed = _needed(step)
        while missing and (
            len(missing) == in_flight(num_stages) or any((m.round, m.block) in needed for m in missing)
        ):
            yield Collect(missing.popleft())
        yield Compute(step)
        missing.append(step)
    yield from map(Collect, missing)


def _needed(step: BlockStep) -> set[tuple[int, int]]:
    """(round, block) of the block-steps whose predictions a block-step's latents need."""
    needed = {(step.round - 1, step.block)}
    if step.left.computed and step.left.level > step.step:
        needed.add((step.round - 1, step.block - 1))
    return needed


def split_layers(
    costs: Sequence[float], num_ranks: int, embed_cost: float = 0.0, head_cost: float = 0.0
) -> list[range]:
    """The layers of each rank, so that the slowest rank has as little as possible.

    costs: of each layer. embed_cost is the first rank's besides its layers, head_cost the last one's.
    Raises InputError where there are more ranks than layers.
    """
    if num_ranks > len(costs):
        raise InputError(f"{num_ranks} pipeline ranks for {len(costs)} layers: use at most {len(costs)}")
    return list(_split(tuple(costs), num_ranks, embed_cost, head_cost))


@cache
def _split(costs: Sequence[float], num_ranks: int, embed_cost: float, head_cost: float) -> list[range]:
    sums = [0.0, *accumulate(costs)]

    def cost(rank: int, start: int, stop: int) -> float:
        ends = embed_cost * (rank == 0) + head_cost * (rank == num_ranks - 1)
        return sums[stop] - sums[start] + ends

    # best[stop]: the slowest of the ranks so far, if they have the layers before stop; and where each began.
    best = {stop: (cost(0, 0, stop), [0]) for stop in range(1, len(costs) + 1)}
    for rank in range(1, num_ranks):
        best = {
            stop: min(
                (max(slowest, cost(rank, start, stop)), [*starts, start])
                for start, (slowest, starts) in best.items()
                if start < stop
            )
            for stop in range(rank + 1, len(costs) + 1)
        }
    _, starts = best[len(costs)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(costs)], strict=True)]


def duration(queue: BlockQueue, rank_costs: Sequence[float], parts: int = 1) -> float:
    """How long the program takes: a rank takes `rank_costs[rank]` for a block-step, messages take no time.

    A stage of several ranks is like one. parts: in how many messages a block-step travels: guidance branches,
    one after the other.
    """
    num_ranks = len(rank_costs)
    free = [0.0] * num_ranks
    predicted: dict[BlockStep, float] = {}
    for operation in program(queue, num_ranks, 0):
        if isinstance(operation, Collect):
            free[0] = max(free[0], predicted.pop(operation.step))
            continue
        for _ in range(parts):
            arrived = 0.0
            for rank, cost in enumerate(rank_costs):
                free[rank] = arrived = max(free[rank], arrived) + cost / parts
        predicted[operation.step] = arrived
    return free[0]


def used_share(queue: BlockQueue, num_ranks: int, parts: int = 1) -> float:
    """The part of equal ranks' time in which they compute; as with `MANY_BLOCKS`, where there are more."""
    most = MANY_BLOCKS * queue.block_frames
    played = replace(queue, num_frames=min(queue.num_frames or most, most))
    busy = (played.num_blocks or 0) * queue.num_steps
    return busy / (busy + idle_slots(played, num_ranks, parts))


def idle_slots(queue: BlockQueue, num_ranks: int, parts: int = 1) -> float:
    """Of a rank, over the whole run, in block-steps of equal ranks."""
    assert queue.num_blocks is not None, "a video without end is never done"
    return duration(queue, [1.0] * num_ranks, parts) - queue.num_blocks * queue.num_steps


@lru_cache(maxsize=256)  # plays the pipeline; each rank of each way that is tried asks
def choose_stages(queue: BlockQueue, num_ranks: int, num_layers: int, parts: int = 1) -> int:
    """How many stages to make of some ranks that could all share a branch's tokens too.

    As many as are used well: groups move more data. What idles is that of the schedule, and of layers that
    do not divide. parts: as for `duration`.
    """
    blocks = min(MANY_BLOCKS, queue.num_blocks or MANY_BLOCKS)
    queue = replace(queue, num_frames=blocks * queue.block_frames)
    possible = [stages for stages in range(1, min(num_ranks, num_layers) + 1) if num_ranks % stages == 0]

    def used(stages: int) -> float:
        costs = [float(len(layers)) for layers in split_layers([1.0] * num_layers, stages)]
        return blocks * queue.num_steps * num_layers / stages / duration(queue, costs, parts)

    return next(stages for stages in reversed(possible) if stages == 1 or used(stages) >= WELL_USED)
