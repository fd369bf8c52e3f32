"""What work takes on a device, and what messages between ranks take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paradit.distributed.transport import Transport
from paradit.trace.spans import LINK, STAGE, begin, end, unrecorded

TIMES = 2
"""How often each cost is measured, after a first time that does not count; the shortest is taken."""
LARGEST_MESSAGE = 2**23
"""Bytes to each rank with which a link's rate is measured, at most."""
TRACED_MESSAGE = 2**20
"""Bytes to each rank with which a traced run measures its link, before sizes are known."""


@dataclass(frozen=True)
class Link:
    """What a message between ranks takes, while all of them send."""

    latency: float
    """Seconds from the start of a small one to its arrival."""
    seconds_per_byte: float
    """Of all that a rank sends, or receives, whatever is more."""


def now(device: torch.device) -> float:
    """Seconds on a clock, once all is done that the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What `work` takes: the shortest of several times, after one to warm up."""
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
    """All ranks of the transport call it together, with the same number.

    num_bytes: what a rank may send to another in an exchange. peers: the ranks with which this one exchanges,
    where that is not each with each other; they all call it.
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
    return Link(latency, max(0.0, taken - latency) / (size * max(1, len(peers))))


def trace_link(transport: Transport, device: torch.device) -> None:
    """Measure the link for the trace, which says how much of the communication was hidden.

    All ranks of the transport call it together.
    """
    traced = begin(LINK, STAGE)
    with unrecorded():
        link = measure_link(transport, TRACED_MESSAGE, device)
    end(traced, latency=link.latency, seconds_per_byte=link.seconds_per_byte, device=device.type)
