"""Measurements of the links between a machine's ranks: all at once, or one pair after another."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch

from paradit.distributed.timing import Link, measure_link
from paradit.distributed.transport import Transport
from paradit.planner.messages import PairSeconds

TIMES = 5
"""Number of measurements of each link; their median is used, because plans need usual times, not the best."""

ROUNDS = 2
"""Number of rounds over all pairs of ranks, so that a passing disturbance is not mistaken for a slow link."""


def measure_pairs(
    transport: Transport, size: int, device: torch.device
) -> dict[tuple[int, int], list[PairSeconds]]:
    """Measure the link between each rank and the next, one pair after another, in several rounds.

    Ranks form a ring: the first rank is next to the last. Returns, for each pair of ranks, its measurements,
    one from every round. All ranks call it together, and get the same result. transport: connection between
    the ranks. size: bytes of a message.
    """
    rank, number = transport.rank, transport.num_ranks
    found: dict[tuple[int, int], list[PairSeconds]] = {}
    for first in [*range(number)] * ROUNDS:
        mine = first, (first + 1) % number
        # The other ranks take part without a peer, because an exchange is a call of all ranks.
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
    """Measure a link several times, and return its least latency and its median rate.

    The link is measured several times because one measurement alone may be far off. size: bytes sent to each
    peer. peers: ranks with which this rank exchanges messages; None: all other ranks.
    """
    links = [measure_link(transport, size, device, peers) for _ in range(TIMES)]
    sent = size * (transport.num_ranks - 1 if peers is None else max(1, len(peers)))
    latency = min(link.latency for link in links)
    usual = median(link.latency + sent * link.seconds_per_byte for link in links)
    # A message that takes no longer than one of one byte would have an infinite rate.
    return Link(latency, max(1e-13, (usual - latency) / sent))


def largest(transport: Transport, number: float, device: torch.device) -> float:
    mine = torch.tensor([number], dtype=torch.float64, device=device)
    return max(float(one) for one in transport.all_gather(mine))
