"""Block queue and layer pipeline as pure data flow, simulated without torch."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest

from messages import says
from paradit.config.errors import InputError
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.scheduling.block_queue import LEVELS, BlockQueue, BlockStep, position_warning
from paradit.scheduling.layer_pipeline import (
    Collect,
    Compute,
    Operation,
    PipelineGrid,
    choose_slices,
    duration,
    idle_slots,
    in_flight,
    program,
    slots_until_first_block,
    split_layers,
    usual_lag,
)


def blocks_and_steps(num_blocks: int, num_steps: int, left_level: str = "same-level") -> BlockQueue:
    return BlockQueue(
        num_frames=4 * num_blocks,
        block_frames=4,
        context_frames=2,
        num_steps=num_steps,
        left_level=left_level,
    )


def random_queue(rng: random.Random) -> BlockQueue:
    block_frames, num_steps = rng.randint(1, 5), rng.randint(1, 12)
    source = rng.choice(["latents", "cache"])
    return BlockQueue(
        num_frames=rng.randint(1, 40),
        block_frames=block_frames,
        context_frames=rng.randint(0, block_frames),
        num_steps=num_steps,
        lag=rng.choice([1, rng.randint(1, num_steps)]),
        left_level="same-level" if source == "cache" else rng.choice(LEVELS),
        left_source=source,
        expert_steps=tuple(rng.sample(range(1, 12), rng.randint(0, 1))),
    )


class Neighbours:
    """Keys that a rank has kept: those of the previous block-step, and those of the last round."""

    def __init__(self) -> None:
        self.before: BlockStep | None = None
        self.kept: dict[int, int] = {}
        """Step of the latest keys of each block, which are kept for its right neighbour."""

    def take(self, queue: BlockQueue, step: BlockStep) -> None:
        if step.right.frames and step.right.source == "cache":
            assert self.before is not None
            assert (self.before.block, self.before.step) == (step.block + 1, step.right.level)
            assert expert(queue, step.step) == expert(queue, step.right.level)
        if step.left.frames and step.left.source == "cache":
            assert self.kept[step.block - 1] == step.left.level
            assert step.left.level == min(step.step + queue.lag, queue.num_steps) - 1
            assert expert(queue, step.step) == expert(queue, step.left.level)
        self.before = step
        self.kept[step.block] = step.step
        if step.step == queue.num_steps - 1:
            self.kept.pop(step.block - 1, None)
        assert len(self.kept) <= queue.full + 1


def expert(queue: BlockQueue, step: int) -> int:
    return sum(change <= step for change in queue.expert_steps)


class Latents:
    """Latents that rank 0 keeps of each block, at its newest level and the one before."""

    def __init__(self) -> None:
        self.level: dict[int, int] = {}

    def begin(self, queue: BlockQueue, step: BlockStep) -> None:
        if step.step == 0:
            assert step.block not in self.level
            self.level[step.block] = 0
        assert self.level[step.block] == step.step
        if step.left.computed:
            same_level = (
                queue.lag == 1 and queue.left_level == "same-level" and queue.left_source == "latents"
            )
            wanted = step.step if same_level else min(step.step + queue.lag, queue.num_steps)
            assert step.left.level == wanted
            assert wanted in (self.level[step.block - 1], self.level[step.block - 1] - 1)
        if step.right.computed:
            assert step.right.level == step.step - queue.lag
            assert step.right.level in (self.level[step.block + 1], self.level[step.block + 1] - 1)

    def end(self, queue: BlockQueue, step: BlockStep, num_ranks: int) -> None:
        assert self.level[step.block] == step.step
        self.level[step.block] += 1
        if self.level[step.block] == queue.num_steps:
            self.level.pop(step.block - 1, None)
        assert len(self.level) <= queue.full + 1 + in_flight(num_ranks)


def play(queue: BlockQueue, num_ranks: int, hop_depth: int, rng: random.Random) -> list[list[BlockStep]]:
    """Run all ranks' programs in a random order, over channels of a few messages.

    Returns the block-steps that each rank computed. Fails if no rank can continue.
    """
    programs: list[Iterator[Operation]] = [program(queue, num_ranks, rank) for rank in range(num_ranks)]
    waiting = [next(each, None) for each in programs]
    hops: list[deque[BlockStep]] = [deque() for _ in range(num_ranks)]
    """Block-steps in flight: hops[r] from rank r to the next, and the last one on the way back to rank 0."""
    depths = [hop_depth] * (num_ranks - 1) + [in_flight(num_ranks)]
    neighbours, latents = [Neighbours() for _ in programs], Latents()
    computed: list[list[BlockStep]] = [[] for _ in programs]

    def ready(rank: int) -> bool:
        operation = waiting[rank]
        if operation is None:
            return False
        if isinstance(operation, Collect):
            return bool(hops[-1])
        return len(hops[rank]) < depths[rank] and (rank == 0 or bool(hops[rank - 1]))

    while any(waiting):
        able = [rank for rank in range(num_ranks) if ready(rank)]
        assert able, "nobody can go on"
        rank = rng.choice(able)
        operation = waiting[rank]
        assert operation is not None
        if isinstance(operation, Collect):
            assert hops[-1].popleft() == operation.step
            latents.end(queue, operation.step, num_ranks)
        else:
            if rank == 0:
                latents.begin(queue, operation.step)
            else:
                assert hops[rank - 1].popleft() == operation.step
            neighbours[rank].take(queue, operation.step)
            computed[rank].append(operation.step)
            hops[rank].append(operation.step)
        waiting[rank] = next(programs[rank], None)
    assert not any(hops)
    return computed


def check_order(queue: BlockQueue, steps: list[BlockStep]) -> None:
    assert queue.num_blocks is not None
    taken = dict.fromkeys(range(queue.num_blocks), 0)
    for step in steps:
        assert taken[step.block] == step.step
        taken[step.block] += 1
    assert set(taken.values()) == {queue.num_steps}
    assert sum(queue.frames_of(block) for block in taken) == queue.num_frames
    rounds = [(step.round, -step.block) for step in steps]
    assert rounds == sorted(rounds), "noisiest first, round after round"
    assert all(step.window_frames <= queue.window_frames for step in steps)


@pytest.mark.parametrize("seed", range(10))
def test_random_schedules_keep_their_invariants(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        queue, num_ranks = random_queue(rng), rng.randint(1, 8)
        computed = play(queue, num_ranks, rng.randint(1, 3), rng)
        assert all(each == computed[0] for each in computed)
        check_order(queue, computed[0])


def test_what_a_block_reads() -> None:
    queue = BlockQueue(num_frames=11, block_frames=4, context_frames=2, num_steps=3, expert_steps=(2,))
    steps = list(queue.steps())
    told = [
        (s.round, s.block, s.step, s.frames, (s.left.frames, s.left.level), (s.right.frames, s.right.level))
        for s in steps
    ]
    assert told == [
        (0, 0, 0, 4, (0, 0), (0, 0)),
        (1, 1, 0, 4, (2, 0), (0, 0)),
        (1, 0, 1, 4, (0, 0), (2, 0)),
        (2, 2, 0, 3, (2, 0), (0, 0)),
        (2, 1, 1, 4, (2, 1), (2, 0)),
        (2, 0, 2, 4, (0, 0), (2, 1)),
        (3, 2, 1, 3, (2, 1), (0, 0)),
        (3, 1, 2, 4, (2, 2), (2, 1)),
        (4, 2, 2, 3, (2, 2), (0, 0)),
    ]
    assert [s.right.source for s in steps if s.right.frames] == ["cache", "cache", "latents", "latents"]
    assert [s.computed_frames for s in steps] == [4, 6, 4, 5, 6, 6, 5, 8, 5]
    assert (queue.num_blocks, queue.num_rounds) == (3, 5)


def test_what_a_block_reads_with_a_lag() -> None:
    queue = BlockQueue(num_frames=11, block_frames=4, context_frames=2, num_steps=3, lag=2)
    told = [(s.round, s.block, s.step, s.left.level, s.right.level) for s in queue.steps()]
    assert told == [
        (0, 0, 0, 0, 0),
        (1, 0, 1, 0, 0),
        (2, 1, 0, 2, 0),
        (2, 0, 2, 0, 0),
        (3, 1, 1, 3, 0),  # the block before has left the queue
        (4, 2, 0, 2, 0),
        (4, 1, 2, 3, 0),
        (5, 2, 1, 3, 0),
        (6, 2, 2, 3, 0),
    ]
    assert [s.right.frames for s in queue.steps()] == [0, 0, 0, 2, 0, 0, 2, 0, 0]
    assert (queue.full, queue.num_rounds, queue.open_rounds) == (2, 7, 4)
    assert [queue.finished(round) for round in range(8)] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert [queue.joined(round) for round in range(8)] == [0, 1, 1, 2, 2, 3, 3, 3]
    cached = [s.left.level for s in replace(queue, left_source="cache").steps() if s.block == 1]
    assert cached == [1, 2, 2]


@pytest.mark.parametrize("num_ranks", range(1, 9))
@pytest.mark.parametrize(("more_steps", "more_blocks"), [(0, 0), (0, 5), (3, 1), (7, 4), (20, 20)])
def test_idle_slots(num_ranks: int, more_steps: int, more_blocks: int) -> None:
    sizes = num_ranks + more_blocks, num_ranks + more_steps
    assert idle_slots(blocks_and_steps(*sizes), num_ranks) == (num_ranks - 1) ** 2
    assert idle_slots(blocks_and_steps(*sizes, "one-cleaner"), num_ranks) == num_ranks**2 - 1


@pytest.mark.parametrize(
    ("lag", "parts", "first_block", "idle"),
    [(1, 2, 1123.5, 12.5), (2, 2, 684.5, 42.5), (4, 2, 391.5, 88.5), (4, 1, 482, 273), (1, 1, 1140, 49)],
)
def test_idle_slots_and_the_first_block_with_a_lag(
    lag: int, parts: int, first_block: float, idle: float
) -> None:
    """Eight ranks, 50 steps and 32 blocks: 1,600 slots of work."""
    queue = replace(blocks_and_steps(32, 50), lag=lag)
    assert idle_slots(queue, 8, parts) == idle
    assert slots_until_first_block(queue, 8, parts) == first_block


@pytest.mark.parametrize(
    ("num_steps", "num_ranks", "parts", "lag"),
    [
        (50, 1, 1, 4),
        (50, 8, 2, 4),
        (50, 8, 1, 4),
        (50, 12, 1, 2),
        (20, 1, 2, 4),
        (20, 6, 2, 4),
        (20, 8, 2, 2),
        (20, 8, 1, 2),
        (15, 1, 1, 2),
        (8, 2, 2, 2),
        (7, 1, 1, 1),
        (4, 8, 2, 1),
    ],
)
def test_the_usual_lag_makes_no_rank_wait_once_the_queue_is_full(
    num_steps: int, num_ranks: int, parts: int, lag: int
) -> None:
    assert usual_lag(num_steps, num_ranks, parts) == lag
    if lag > 1:  # more blocks then take no idle slots more
        queues = [replace(blocks_and_steps(blocks, num_steps), lag=lag) for blocks in (40, 60)]
        first, second = (idle_slots(queue, num_ranks, parts) for queue in queues)
        assert first == pytest.approx(second)


@pytest.mark.parametrize("num_ranks", range(2, 9))
def test_as_many_blocks_as_ranks_idle_more_where_the_left_one_is_waited_for(num_ranks: int) -> None:
    """A round has N block-steps and waits for its second, the left block's: one more idle slot a round."""
    for more_steps in (1, 5):
        queue = blocks_and_steps(num_ranks, num_ranks + more_steps, "one-cleaner")
        assert idle_slots(queue, num_ranks) == num_ranks**2 - 1 + more_steps


@pytest.mark.parametrize("num_ranks", range(1, 9))
def test_two_branches_one_after_the_other_idle_less_than_half(num_ranks: int) -> None:
    queue = blocks_and_steps(num_ranks + 3, num_ranks + 2)
    assert idle_slots(queue, num_ranks, parts=2) == -(-((num_ranks - 1) ** 2) // 2) / 2


@pytest.mark.parametrize(("num_blocks", "num_steps"), [(5, 50), (32, 4), (1, 10), (3, 1)])
def test_fewer_blocks_or_steps_than_ranks(num_blocks: int, num_steps: int) -> None:
    queue = blocks_and_steps(num_blocks, num_steps)
    idle = idle_slots(queue, 8)
    # Every round waits for the one before, so it takes eight slots, however few blocks it has.
    assert idle > (8 - 1) ** 2 or num_steps == 1
    assert queue.num_rounds and idle <= 8 * queue.num_rounds
    play(queue, 8, 1, random.Random(0))


def test_duration_is_that_of_the_slowest_rank_and_what_is_idle() -> None:
    queue = blocks_and_steps(20, 20)
    assert duration(queue, [1.0, 3.0]) == pytest.approx(20 * 20 * 3.0 + 1.0, rel=0.01)


@pytest.mark.parametrize(
    ("num_blocks", "num_steps", "num_ranks", "num_layers", "parts", "expected"),
    [
        (32, 50, 4, 40, 1, 4),
        (32, 50, 8, 40, 2, 8),
        (5, 50, 8, 40, 1, 4),  # fewer blocks than ranks: 0.59 busy on eight pipeline ranks, 0.97 on four
        (5, 50, 8, 40, 2, 8),  # two branches fill the idle time of one
        (32, 4, 8, 40, 1, 4),  # fewer steps than ranks
        (1, 10, 4, 40, 2, 1),  # one block
        (32, 50, 4, 6, 2, 4),  # the slowest has two layers instead of 1.5: exchanges would cost more
        (32, 50, 8, 5, 1, 2),  # five layers on four ranks: the slowest has two, instead of 1.25
        (32, 50, 5, 4, 2, 1),  # more ranks than layers
        (None, 50, 4, 40, 2, 4),
        (None, 2, 8, 40, 1, 4),
    ],
)
def test_as_many_stages_as_are_used_well(  # noqa: PLR0917
    num_blocks: int | None, num_steps: int, num_ranks: int, num_layers: int, parts: int, expected: int
) -> None:
    queue = replace(blocks_and_steps(num_blocks or 1, num_steps), num_frames=num_blocks and 4 * num_blocks)
    assert choose_slices(queue, num_ranks, (1.0,) * num_layers, parts) == expected


def test_a_dear_layer_leaves_the_others_idle() -> None:
    queue = blocks_and_steps(32, 50)
    assert choose_slices(queue, 4, (1.0,) * 4) == 4
    # On four ranks, three would be busy for a quarter of the time; on two, one for three quarters of it.
    assert choose_slices(queue, 4, (4.0, 1.0, 1.0, 1.0)) == 2


def test_where_ranks_stand() -> None:
    grid = PipelineGrid(num_slices=2, cfg_degree=2, sharers=2)
    assert (grid.num_ranks, grid.slice_ranks) == (8, 4)
    assert grid.groups() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    where = [(grid.slice_of(rank), grid.branch(rank), grid.place(rank)) for rank in range(8)]
    assert where == [(stage, branch, place) for stage in (0, 1) for branch in (0, 1) for place in (0, 1)]


def test_a_video_without_end() -> None:
    queue = BlockQueue(num_frames=None, block_frames=4, context_frames=2, num_steps=3)
    endless = list(islice(queue.steps(), 300))
    assert max(step.block for step in endless) == 100
    finite = list(islice(blocks_and_steps(200, 3).steps(), 300))
    assert endless == finite
    assert list(islice(program(queue, 3, 0), 10)) == list(islice(program(blocks_and_steps(9, 3), 3, 0), 10))


def test_a_program_goes_on_from_a_round() -> None:
    queue = blocks_and_steps(5, 4)
    whole = list(program(queue, 3, 1))
    assert list(program(queue, 3, 1, first_round=3)) == [op for op in whole if op.step.round >= 3]
    first = list(program(queue, 3, 0, first_round=3))
    assert sorted(op.step.round for op in first if isinstance(op, Compute)) == sorted(
        op.step.round for op in first if isinstance(op, Collect)
    )


@pytest.mark.parametrize(
    ("costs", "num_ranks", "ends", "expected"),
    [
        ([1] * 6, 2, (0, 0), [3, 3]),
        ([1] * 30, 8, (0, 0), [3, 3, 4, 4, 4, 4, 4, 4]),
        ([1] * 5, 2, (1.5, 0), [2, 3]),
        ([1] * 5, 2, (0, 1.5), [3, 2]),
        ([2, 2, 1, 1, 1, 1], 2, (0, 0), [2, 4]),
        ([1] * 4, 4, (9, 9), [1, 1, 1, 1]),
        ([1] * 4, 1, (1, 1), [4]),
    ],
)
def test_split_layers(
    costs: list[float], num_ranks: int, ends: tuple[float, float], expected: list[int]
) -> None:
    parts = split_layers(costs, num_ranks, *ends)
    assert [layer for part in parts for layer in part] == list(range(len(costs)))
    assert sorted(map(len, parts)) == sorted(expected)
    if sum(ends):
        assert [len(part) for part in parts] == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"context_frames": 5}, "at most 4, .*, got 5"),
        ({"context_frames": -1}, "context_frames must be at least 0, got -1"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"left_level": "newest"}, "left_level .* same-level .* one-cleaner, got 'newest'"),
        ({"left_source": "disk"}, "left_source must be latents or cache"),
        ({"left_level": "one-cleaner", "left_source": "cache"}, "use left_level same-level"),
        ({"lag": 0}, "lag must be at least 1, got 0"),
        ({"lag": 4}, "lag must be at most 3, the number of steps, .*, got 4"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    settings = {"num_frames": 9, "block_frames": 4, "context_frames": 2, "num_steps": 3} | wrong
    with pytest.raises(InputError, match=message):
        BlockQueue(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="3 pipeline ranks for 2 layers: use at most 2"):
        split_layers([1, 1], 3)


def test_windows_beyond_what_was_trained_are_warned_of() -> None:
    queue = BlockQueue(num_frames=257, block_frames=8, context_frames=8, num_steps=50)
    warning = position_warning(queue, 21)
    assert warning is not None
    assert says(warning, "24 latent frames .. 8 and 8 .. 21")
    assert read_spec(find_model("shapes")).trained_latent_frames == 13  # 49 frames
    short = BlockQueue(num_frames=20, block_frames=8, context_frames=8, num_steps=50)
    assert position_warning(short, 21) is None


def test_windows_and_what_has_left() -> None:
    queue = BlockQueue(num_frames=11, block_frames=3, context_frames=2, num_steps=4)
    assert [queue.window_of(block) for block in queue.blocks()] == [
        range(0, 5),
        range(1, 8),
        range(4, 11),
        range(7, 11),
    ]
    left = {round: queue.active(round)[0] for round in queue.rounds()}
    assert all(queue.finished(round) == first for round, first in left.items())
    endless = BlockQueue(num_frames=None, block_frames=3, context_frames=2, num_steps=4)
    assert endless.window_of(3) == range(7, 14)
    assert next(endless.blocks(5)) == next(endless.rounds(5)) == 5
