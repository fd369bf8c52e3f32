"""Which of several ways to do the same is quickest here: by trying, on all ranks at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch

T = TypeVar("T")

ROUNDS = 3
MARGIN = 0.03
"""How much quicker than the first, in parts of its time, another way must be to be taken instead."""


def quickest(
    ways: Sequence[T],
    take: Callable[[T], object],
    from_all_ranks: Callable[[int], list[int]],
    device: torch.device,
) -> T:
    """The way that takes least time on the slowest rank; the first unless another is clearly quicker.

    take: goes one way once. from_all_ranks: every rank's number, so that all decide alike.
    """
    times: list[list[int]] = [[] for _ in ways]
    for turn in range(ROUNDS + 1):
        for way, taken in zip(ways, times, strict=True):
            from_all_ranks(0)  # all begin together
            began = time.perf_counter()
            take(way)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took = max(from_all_ranks(round(1e6 * (time.perf_counter() - began))))
            if turn:  # the first time warms up
                taken.append(took)
    medians = [median(taken) for taken in times]
    best = min(range(len(ways)), key=medians.__getitem__)
    return ways[best] if medians[best] < (1 - MARGIN) * medians[0] else ways[0]
