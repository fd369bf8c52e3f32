"""Measurement of the time that computations take on a device, and that messages take between ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paradit.distributed.transport import Transport
from paradit.trace.spans import LINK, STAGE, begin, end, unrecorded

TIMES = 2
"""Number of timed runs of a piece of work, after a warm-up run. The shortest time is used."""
LARGEST_MESSAGE = 2**23
"""Largest number of bytes that a rank sends to another rank when a link's rate is measured."""
TRACED_MESSAGE = 2**20
"""Number of bytes that a rank sends to another rank when a link is measured for the trace of a run."""


@dataclass(frozen=True)
class Link:
    """Latency and rate of messages between ranks, measured while all ranks send at the same time."""

    latency: float
    """Seconds from the start of a small message to its arrival."""
    seconds_per_byte: float
    """Seconds for each byte that a rank sends, or for each that it receives if it receives more."""


def now(device: torch.device) -> float:
    """Return a clock's time in seconds, once the device has finished all work that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes: the shortest of several runs, after one warm-up."""
    work()
    taken = []
    for _ in range(TIMES):
        began = now(device)
        work()
        taken.append(now(device) - began)
    return min(taken)


def measure_link(
    transport: Transport, num_bytes: int, device: torch.device, peers: Sequence[int] | None = None
) -> Link:
    """Measure latency and rate of messages between ranks; all ranks call this together.

    num_bytes: size of the messages to measure with, at most `LARGEST_MESSAGE`; the same on all ranks. It
    should be the number of bytes that a rank sends to another in an exchange. peers: the ranks with which
    this rank exchanges messages; None: all others.
    """
    if peers is None:
        peers = [rank for rank in range(transport.num_ranks) if rank != transport.rank]

    def exchange(size: int) -> Callable[[], object]:
        outgoing = [message(size if rank in peers else 0) for rank in range(transport.num_ranks)]
        return lambda: transport.start(outgoing, [len(part) for part in outgoing]).wait()

    def message(size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=device)

    size = min(max(1, num_bytes), LARGEST_MESSAGE)
    latency = seconds(exchange(1), device)
    taken = seconds(exchange(size), device)
    # If times fluctuate, the large message may appear to be the faster one.
    return Link(latency, max(0.0, taken - latency) / (size * max(1, len(peers))))


def trace_link(transport: Transport, device: torch.device) -> None:
    """Measure the link between ranks and record it in the trace, to show how much communication was hidden.

    transport: connection among the ranks, which all call this together.
    """
    traced = begin(LINK, STAGE)
    with unrecorded():  # these messages are not part of the run
        link = measure_link(transport, TRACED_MESSAGE, device)
    end(traced, latency=link.latency, seconds_per_byte=link.seconds_per_byte, device=device.type)
