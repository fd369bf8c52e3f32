"""Which rank does what, in order, where layers are divided over ranks and block-steps flow through them.

Rank 0 embeds, has the first layers, and holds all latents and their solvers; the last rank has the last
layers and the head, and sends predictions back. Every rank computes the block-steps in the queue's order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from paradit.errors import InputError
from paradit.scheduling.block_queue import BlockQueue, BlockStep


@dataclass(frozen=True)
class Compute:
    """Take a block-step through this rank's layers."""

    step: BlockStep


@dataclass(frozen=True)
class Collect:
    """Wait for a block-step's prediction, the oldest that is missing, and take the solver's step with it."""

    step: BlockStep


Operation = Compute | Collect


def in_flight(num_ranks: int) -> int:
    """How many block-steps rank 0 begins, at most, before it collects the oldest.

    Twice what the ranks compute at a time: as many may be travelling. A channel back to rank 0 that holds
    as many never fills, so that no rank waits for one that waits for it.
    """
    return 2 * num_ranks


def program(queue: BlockQueue, num_ranks: int, rank: int, first_round: int = 0) -> Iterator[Operation]:
    """What a rank does, in order, from a round on; all rounds before are over."""
    if rank > 0:
        yield from (Compute(step) for step in queue.steps(first_round))
        return
    missing: deque[BlockStep] = deque()
    for step in queue.steps(first_round):
        needed = _needed(step)
        while missing and (
            len(missing) == in_flight(num_ranks) or any((m.round, m.block) in needed for m in missing)
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

    parts: in how many messages a block-step travels: guidance branches, one after the other.
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


def idle_slots(queue: BlockQueue, num_ranks: int, parts: int = 1) -> float:
    """Of a rank, over the whole run, in block-steps of equal ranks."""
    assert queue.num_blocks is not None, "a video without end is never done"
    return duration(queue, [1.0] * num_ranks, parts) - queue.num_blocks * queue.num_steps
