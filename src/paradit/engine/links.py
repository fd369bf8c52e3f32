"""What messages between a machine's ranks take: all at once, and one pair after the other."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch

from paradit.distributed.timing import Link, measure_link
from paradit.distributed.transport import Transport
from paradit.planner.messages import PairSeconds

TIMES = 5
"""How often each is measured; the median counts: what is planned are usual times, not the best ones."""

ROUNDS = 2
"""So often messages between two ranks are measured, all pairs in turn: what is beside them for a while is not
taken for a slow link."""


def measure_pairs(
    transport: Transport, size: int, device: torch.device
) -> dict[tuple[int, int], list[PairSeconds]]:
    """Of every rank and the next one, round to the first: one pair after the other, and all of them again.

    All ranks of the transport call it together, and get the same.
    """
    rank, number = transport.rank, transport.num_ranks
    found: dict[tuple[int, int], list[PairSeconds]] = {}
    for first in [*range(number)] * ROUNDS:
        mine = first, (first + 1) % number
        link = usual_link(transport, size, device, [one for one in mine if one != rank and rank in mine])
        latency, each_byte = (
            largest(transport, one if rank in mine else 0.0, device)
            for one in (link.latency, link.seconds_per_byte)
        )
        found.setdefault(mine, []).append(PairSeconds(latency, each_byte))
    return found


def usual_link(
    transport: Transport, size: int, device: torch.device, peers: Sequence[int] | None = None
) -> Link:
    """Of several measurements, each the best of some: one that is disturbed may be far off."""
    links = [measure_link(transport, size, device, peers) for _ in range(TIMES)]
    sent = size * (transport.num_ranks - 1 if peers is None else max(1, len(peers)))
    latency = min(link.latency for link in links)
    usual = median(link.latency + sent * link.seconds_per_byte for link in links)
    # Messages so small that they take no longer than one byte would be infinitely quick.
    return Link(latency, max(1e-13, (usual - latency) / sent))


def largest(transport: Transport, number: float, device: torch.device) -> float:
    mine = torch.tensor([number], dtype=torch.float64, device=device)
    return max(float(one) for one in transport.all_gather(mine))
