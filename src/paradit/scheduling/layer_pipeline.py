"""Schedule of a layer pipeline, whose ranks each hold a slice of the layers: what each rank does, in order.

The unit of work is a block-step: one step of one frame block. It passes from rank to rank. Rank 0 embeds,
computes the first layers, and holds all latents and their solvers. The last rank computes the last layers and
the head, and sends predictions back to rank 0. Every rank computes block-steps in the queue's order. What is
one rank here may also be several ranks that share its work, and hold a layer slice together (`PipelineGrid`).
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
"""Smallest fraction of the time for which layer slices should be busy. If a number of slices
would be less busy than this, fewer are used. Then several ranks share the tokens of a slice, with an exchange
in every layer."""
USUAL_LAGS = (4, 2)
"""Lags that a video gets by default if its queue is long enough, the preferred one first. The larger the lag,
the less frame blocks' borders are seen."""
LEAST_BLOCKS = 4
"""Smallest number of frame blocks that a full queue should have with a lag from `USUAL_LAGS`."""
MANY_BLOCKS = 64
"""Largest number of frame blocks that are simulated to estimate how busy a pipeline is. Longer videos are
simulated as if they had this many."""


@dataclass(frozen=True)
class PipelineGrid:
    """Grid of a layer pipeline's ranks: by layer slice, then guidance branch, then share of the tokens.

    A rank sends its hidden states to the rank of the next slice that has the same branch and tokens.
    """

    num_slices: int = 1
    cfg_degree: int = 1
    """Number of groups of ranks among which guidance branches are divided; with 2, each branch has its own
    ranks."""
    sharers: int = 1
    """Number of ranks that share a guidance branch's tokens (sequence parallelism)."""

    @property
    def slice_ranks(self) -> int:
        """Number of ranks that hold each layer slice."""
        return self.cfg_degree * self.sharers

    @property
    def num_ranks(self) -> int:
        return self.num_slices * self.slice_ranks

    def slice_of(self, rank: int) -> int:
        return rank // self.slice_ranks

    def branch(self, rank: int) -> int:
        return rank % self.slice_ranks // self.sharers

    def branches(self, rank: int, number: int) -> Sequence[int]:
        """Return the indices of the guidance branches that a rank computes, of `number` branches in all.

        Raises ValueError if guidance branches have ranks of their own, but not as many groups of them.
        """
        if self.cfg_degree not in (1, number):
            raise ValueError(f"{number} guidance branches on {self.cfg_degree} groups of ranks")
        return range(number) if self.cfg_degree == 1 else [self.branch(rank)]

    def place(self, rank: int) -> int:
        """Return a rank's index among the ranks that share tokens in its layer slice and guidance branch."""
        return rank % self.sharers

    def groups(self) -> list[list[int]]:
        """Return the groups of ranks that share tokens, each as a list."""
        starts = range(0, self.num_ranks, self.sharers)
        return [list(range(start, start + self.sharers)) for start in starts]


@dataclass(frozen=True)
class Compute:
    """Operation of a pipeline rank: pass a frame block, for one denoising step, through the rank's layers."""

    step: BlockStep


@dataclass(frozen=True)
class Collect:
    """Operation of rank 0: wait for the oldest outstanding prediction, and take the solver's step with it."""

    step: BlockStep


Operation = Compute | Collect


def in_flight(num_slices: int) -> int:
    """Return the largest number of block-steps that rank 0 begins before it must collect a prediction.

    A block-step is one step of one frame block. The number is two for each layer slice: one block-step that
    the slice computes, and one on its way to the slice. If the channel back to rank 0 has room for this many
    predictions, it never fills, so no two ranks ever wait for each other.
    """
    return 2 * num_slices


def program(
    queue: BlockQueue,
    num_slices: int,
    rank: int,
    first_round: int = 0,
    goes_on: Callable[[int], bool] = lambda _: True,
) -> Iterator[Operation]:
    """Yield the operations of a pipeline rank, in order, from round `first_round` on.

    A round is one pass over the block queue; all earlier rounds must be finished. Only rank 0 collects
    predictions. goes_on: function that returns whether to compute a round; it is called when that round
    begins.
    """
    steps = takewhile(lambda step: goes_on(step.round), queue.steps(first_round))
    if rank > 0:
        yield from (Compute(step) for step in steps)
        return
    missing: deque[BlockStep] = deque()
    # Collect as late as possible, so that rank 0 begins block-steps while others compute earlier ones.
    for step in steps:
        needed = _needed(step)
        while missing and (
            len(missing) == in_flight(num_slices) or any((m.block, m.step) in needed for m in missing)
        ):
            yield Collect(missing.popleft())
        yield Compute(step)
        missing.append(step)
    yield from map(Collect, missing)


def _needed(step: BlockStep) -> set[tuple[int, int]]:
    """Return the earlier steps whose predictions must be there before a step of a frame block begins.

    The earlier steps are (block, step) pairs. A prediction is collected only after all earlier ones.
    """
    needed = {(step.block, step.step - 1)}
    if step.left.computed:  # latents of level n are the result of step n - 1
        needed.add((step.block - 1, step.left.level - 1))
    return needed


def split_layers(
    costs: Sequence[float], num_ranks: int, embed_cost: float = 0.0, head_cost: float = 0.0
) -> list[range]:
    """Split the layers over the ranks so that the slowest rank has as little to compute as possible.

    costs: cost of each layer. embed_cost: additional cost of the first rank, which embeds. head_cost:
    additional cost of the last rank, which computes the head. Raises InputError if there are more ranks than
    layers.
    """
    if num_ranks > len(costs):
        raise InputError(f"{num_ranks} pipeline ranks for {len(costs)} layers: use at most {len(costs)}")
    return list(_split(tuple(costs), num_ranks, embed_cost, head_cost))


@cache
def _split(costs: Sequence[float], num_ranks: int, embed_cost: float, head_cost: float) -> list[range]:
    sums = [0.0, *accumulate(costs)]

    def cost(rank: int, start: int, stop: int) -> float:
        ends = embed_cost * (rank == 0) + head_cost * (rank == num_ranks - 1)  # both, if there is one rank
        return sums[stop] - sums[start] + ends

    # Dynamic programming. best[stop]: the cost of the slowest rank if the ranks so far have all layers before
    # `stop`, and each rank's first layer.
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
    """Return how long a layer pipeline takes for a video, in the unit of `rank_costs`; messages take no time.

    rank_costs: cost of one step of one frame block in each layer slice. parts: number of messages in which a
    step's hidden states travel: one for each guidance branch that a rank computes.
    """
    *_, (_, end) = _collected(queue, rank_costs, parts)
    return end


def slots_until_first_block(queue: BlockQueue, num_ranks: int, parts: int = 1) -> float:
    """Return after how long rank 0 has the first denoised frame block, in multiples of a block-step's time.

    A block-step is one step of one frame block; all ranks take equally long for it. parts: number of messages
    in which a step's hidden states travel.
    """
    last = queue.num_steps - 1
    collected = _collected(queue, [1.0] * num_ranks, parts)
    return next(end for step, end in collected if (step.block, step.step) == (0, last))


def _collected(
    queue: BlockQueue, rank_costs: Sequence[float], parts: int
) -> Iterator[tuple[BlockStep, float]]:
    """Yield each step of each frame block, and the time at which rank 0 has collected its prediction."""
    num_ranks = len(rank_costs)
    free = [0.0] * num_ranks
    predicted: dict[BlockStep, float] = {}
    for operation in program(queue, num_ranks, 0):
        if isinstance(operation, Collect):
            free[0] = max(free[0], predicted.pop(operation.step))
            yield operation.step, free[0]
            continue
        # A rank begins with one part while the previous rank computes the next.
        for _ in range(parts):
            arrived = 0.0
            for rank, cost in enumerate(rank_costs):
                free[rank] = arrived = max(free[rank], arrived) + cost / parts
        predicted[operation.step] = arrived


def used_share(queue: BlockQueue, num_ranks: int, parts: int = 1) -> float:
    """Return the fraction of a layer pipeline's run for which its ranks compute, if all are equally fast.

    At most `MANY_BLOCKS` blocks of a video are simulated.
    """
    most = MANY_BLOCKS * queue.block_frames
    simulation = replace(queue, num_frames=min(queue.num_frames or most, most))
    busy = (simulation.num_blocks or 0) * queue.num_steps
    return busy / (busy + idle_slots(simulation, num_ranks, parts))


def idle_slots(queue: BlockQueue, num_ranks: int, parts: int = 1) -> float:
    """Return how long a pipeline rank is idle over the whole run, in multiples of the time of one block-step.

    A block-step is one step of one frame block; all ranks take equally long for it.
    """
    assert queue.num_blocks is not None, "a video of duration inf never ends"
    return duration(queue, [1.0] * num_ranks, parts) - queue.num_blocks * queue.num_steps


def usual_lag(num_steps: int, num_slices: int, parts: int) -> int:
    """Return the default lag of a block queue: the largest with which no rank waits once the queue is full.

    With a lag, a frame block waits for the step that the block before it took in the round before. Then the
    other blocks of a round must keep the ranks busy until that step's prediction has returned. parts: number
    of messages in which a step's hidden states travel: one for each guidance branch that a rank computes.
    """
    least = max(LEAST_BLOCKS, 2 + (num_slices - 1) / parts)
    return next((lag for lag in USUAL_LAGS if num_steps // lag >= least), 1)


@lru_cache(maxsize=256)  # slow: it simulates the pipeline, and is called for every candidate
def choose_slices(queue: BlockQueue, num_ranks: int, layers: tuple[float, ...], parts: int = 1) -> int:
    """Return the number of layer slices into which a layer pipeline of `num_ranks` ranks divides the model.

    With fewer slices than ranks, several ranks share a slice's tokens, which moves more data. So the result
    is the largest number whose slices are busy enough (`WELL_USED`). Slices are idle at both ends of the
    schedule, and if the layers do not divide evenly. layers: cost of each layer. parts: number of messages in
    which a step's hidden states travel: one for each guidance branch that a rank computes.
    """
    blocks = min(MANY_BLOCKS, queue.num_blocks or MANY_BLOCKS)
    queue = replace(queue, num_frames=blocks * queue.block_frames)
    possible = [slices for slices in range(1, min(num_ranks, len(layers)) + 1) if num_ranks % slices == 0]

    def used(slices: int) -> float:
        costs = [sum(layers[part.start : part.stop]) for part in split_layers(layers, slices)]
        return blocks * queue.num_steps * sum(layers) / slices / duration(queue, costs, parts)

    return next(slices for slices in reversed(possible) if slices == 1 or used(slices) >= WELL_USED)
