"""Work of helpers in attention co-processing: its size, whether it pays, and exactness in one process."""

import random
from typing import Any

import pytest
import torch

from attention_in_memory import FORMS, attend_on_ranks, random_qkv, random_shares
from paradit.attention.local_attention import sdpa
from paradit.config.errors import InputError
from paradit.config.placement import Placement
from paradit.config.placement_text import read_groups, read_placement
from paradit.distributed.shares import Shares
from paradit.parallel.coprocess_message import Message
from paradit.scheduling.helper_work import TRIALS, HelperSpeed, Judge, helpers_work
from threads import one_thread


def speed(compute: float = 1.0, link: float = 0.0, fixed: float = 0.0) -> HelperSpeed:
    return HelperSpeed(compute=compute, link=link, fixed=fixed)


@pytest.mark.parametrize(
    ("helpers", "expected"),
    [
        ([speed()], [300]),  # as fast as each of the three others
        ([speed(2.0)], [171]),  # half as fast: 1 / 7
        ([speed(), speed(0.5)], [200, 400]),
        ([speed(link=0.25)], [171]),  # messages take as long as the work
        ([speed(fixed=300.0)], [75]),  # all end after 375
        ([speed(fixed=400.0)], [0]),  # the others are done by then
        ([speed(fixed=400.0), speed()], [0, 300]),
        ([speed(0.25, link=1000.0)], [0]),
        ([], []),
    ],
)
def test_a_share_is_what_can_be_done_and_sent_in_time(
    helpers: list[HelperSpeed], expected: list[int]
) -> None:
    assert helpers_work(1200, 1.0, 3, helpers, parts=1) == expected


def test_what_is_in_parts_travels_while_it_is_computed() -> None:
    helpers = [speed(link=0.5)]  # 1.5 in, 1 to compute, 0.5 out
    assert helpers_work(1200, 1.0, 3, helpers, parts=1) == [120]  # 3 a row
    assert helpers_work(1200, 1.0, 3, helpers, parts=3) == [171]  # 2
    assert helpers_work(1200, 1.0, 3, helpers, parts=10**9) == [218]  # 1.5


@pytest.mark.parametrize("seed", range(20))
def test_all_end_together(seed: int) -> None:
    numbers = random.Random(seed)
    helpers = [
        speed(numbers.uniform(0.2, 5), numbers.uniform(0, 1), numbers.choice([0, 20, 90, 500]))
        for _ in range(4)
    ]
    rows, ranks, parts = 10_000, numbers.randint(1, 5), numbers.choice([1, 2, 6])
    work = helpers_work(rows, 1.0, ranks, helpers, parts)
    end = (rows - sum(work)) / ranks
    for helper, number in zip(helpers, work, strict=True):
        times = 3 * helper.link, helper.compute, helper.link
        row = max(times) + (sum(times) - max(times)) / parts
        # A helper without work could not have done any in time.
        assert (
            helper.fixed + number * row == pytest.approx(end, abs=row + 4)
            if number
            else helper.fixed + row >= end - 4
        )


def judged(
    seconds: dict[tuple[int, ...], float], steps: int, judge: Judge | None = None
) -> list[tuple[int, ...]]:
    """Return the helpers that a judge chooses in each of several steps, while all helpers are idle.

    seconds: the time of a step, by the helpers that help in it.
    """
    judge, idle = judge or Judge(), max(seconds, key=len)
    chosen = []
    for _ in range(steps):
        chosen.append(judge.choose(idle))
        judge.record(chosen[-1], seconds[chosen[-1]])
    return chosen


def test_help_that_does_not_help_is_left_out() -> None:
    first = [(), (0, 1)] * (TRIALS + 1)
    assert judged({(): 1.0, (0, 1): 0.9}, 20) == first + [(0, 1)] * 12
    assert judged({(): 1.0, (0, 1): 1.0}, 20) == first + [()] * 12


def test_times_that_change_are_seen() -> None:
    judge = Judge()
    judged({(): 1.0, (0,): 0.8}, 20, judge)
    # Everything is slower now, with and without help, so the help must not be blamed.
    later = judged({(): 2.0, (0,): 1.6}, 40, judge)
    assert later[-20:] == [(0,)] * 20


def test_who_is_idle_is_judged_together() -> None:
    judge = Judge()
    judged({(): 1.0, (1,): 0.8}, 20, judge)
    judged({(): 1.0, (0, 1): 1.2}, 20, judge)
    assert judge.choose((1,)) == (1,)
    assert judge.choose((0, 1)) == judge.choose(()) == ()


@pytest.mark.parametrize("form", ["plain", "2 chunks", "5 chunks"])
@pytest.mark.parametrize(("num_holders", "num_helpers"), [(1, 1), (2, 1), (3, 2), (2, 3)])
@one_thread()
def test_every_split_has_the_bits_of_one_place(num_holders: int, num_helpers: int, form: str) -> None:
    numbers = random.Random(num_holders * 10 + num_helpers)
    for _ in range(25):
        shares = random_shares(numbers, num_holders, num_helpers)
        q, k, v = random_qkv(shares)
        attended, _ = attend_on_ranks(shares, q, k, v, FORMS[form])
        assert torch.equal(attended, sdpa(q, k, v)), shares


def test_a_helper_sends_nothing_in() -> None:
    shares = Shares.equal(27, 3, 2, num_replicated=4).with_helpers([31])
    _, transports = attend_on_ranks(shares, *random_qkv(shares), FORMS["plain"])
    # Only its results travel: tokens to their ranks, and the text to both; 2 x 16 values of four bytes.
    (head, *_), text = shares.work_of(2), shares.replicated
    rows = sum(len(box) + len(box.intersect(text) or ()) for box in shares.work_of(2))
    assert head.stop == shares.num_rows
    assert transports[2].bytes_sent == rows * 2 * 16 * 4


@pytest.mark.parametrize(
    ("groups", "fields", "message"),
    [
        ("denoise=0-2", {}, "coprocess .* decode .* not denoise: use a placement such"),
        ("denoise=0-2 decode=2", {}, "coprocess .* decode .* not denoise"),
        ("denoise=0-1 decode=2", {"cfg_degree": 2}, "use cfg_degree 1, or leave coprocess out"),
        ("denoise=0-1 decode=2", {"attention": "ring"}, "auto, ulysses, pipesp, pipesp-paper, got 'ring'"),
    ],
)
def test_what_cannot_be(groups: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Placement.of(ranks=3, **read_groups(groups), **fields, coprocess=True)


def test_it_is_written_to_json() -> None:
    where = Placement(ranks=2, denoise=(0,), decode=(1,), coprocess=True)
    assert read_placement(where.to_json()) == where


def test_messages_come_as_they_were() -> None:
    message = Message(kind=1, batch=2, head_dim=16, dtype=1, steps=9, work=(4, 0, 7))
    assert Message.unpack(message.pack(torch.device("cpu"))) == message
