"""Fit the latency and bandwidth of a machine's links to message times measured between its ranks.

The times are measured by `engine.microbenchmarks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paradit.planner.calibration import Copies
from paradit.planner.hardware import Device, Link, are_neighbours


@dataclass(frozen=True, kw_only=True)
class Messages:
    """Measured rates and latencies of messages between a machine's ranks, and their effect on computing."""

    latency: float
    pair: float
    """Bytes/s that a rank sends while a single pair of ranks exchanges data. If neighbouring ranks (0 and 1,
    2 and 3, ...) have a link of their own, the pair is not one of neighbours."""
    all: float
    """Bytes/s that a rank sends while all ranks send to all others."""
    crowding: float = 0.0
    """Slowdown of computing by messages: seconds added for each second in which messages travel meanwhile."""
    posting: float = 0.0
    """Seconds by which each exchange of messages, however small, delays computing at the same time."""
    neighbours: float | None = None
    """Bytes/s that a rank sends while neighbouring ranks (0 and 1, 2 and 3, ...) exchange data; None if these
    have no link of their own."""
    neighbours_latency: float | None = None


@dataclass(frozen=True)
class PairSeconds:
    """Latency in seconds, and seconds per byte, of messages between two ranks while no others send."""

    latency: float
    each_byte: float


CLEARLY = 1.5
"""Factor by which messages between neighbouring ranks (0 and 1, 2 and 3, ...) must be faster than all others.
Only then are neighbours assumed to have a link of their own. The slowest measurement of neighbours is
compared with the fastest of the other pairs."""
# An NVLink bridge is 2 times as fast as the port of PCIe 4.0, and 3 times as fast as a PCIe transfer between
# two devices (links.toml). Links of one kind differ by some tenths on a busy machine, but it is not always
# the same pairs that are slower.


def neighbours_of(measured: Mapping[tuple[int, int], Sequence[PairSeconds]]) -> PairSeconds | None:
    """Return the times of the slowest pair of neighbours; None if neighbours have no link of their own.

    Neighbours are ranks 0 and 1, 2 and 3, and so on. measured: message times of each pair of ranks, each
    measured several times.
    """
    ranks = {rank for pair in measured for rank in pair}
    if not all(rank ^ 1 in ranks for rank in ranks):
        return None  # with an odd number of ranks, the last has no neighbour
    inner = [one for pair, times in measured.items() if are_neighbours(*pair) for one in times]
    across = [one.each_byte for pair, times in measured.items() if not are_neighbours(*pair) for one in times]
    if not across:
        return None
    slowest = PairSeconds(max(one.latency for one in inner), max(one.each_byte for one in inner))
    return slowest if CLEARLY * slowest.each_byte < min(across) else None


def slowest_pair(measured: Mapping[tuple[int, int], Sequence[PairSeconds]], *, neighbours_too: bool) -> float:
    """Return the seconds per byte of the slowest pair of ranks; each pair's fastest measurement counts.

    neighbours_too: whether pairs of neighbours (0 and 1, 2 and 3, ...) count.
    """
    return max(
        min(one.each_byte for one in times)
        for pair, times in measured.items()
        if neighbours_too or not are_neighbours(*pair)
    )


def fit_link(messages: Messages | None, copies: Copies, ranks: int) -> Link:
    """Return the link between a machine's ranks, with figures that fit the measured messages.

    If ranks send more slowly when all of them send than when one pair does, they share the link's total rate
    (`shared`). messages: measurements; None for a single rank, whose link is never used.
    """
    if messages is None:
        return Link(name="within", latency=0.0, bandwidth=copies.copied, copy=copies.fetched)
    everyone = messages.all
    if messages.neighbours is not None:
        # A neighbour's messages take their own, faster link, so the common link carries only the others.
        everyone *= (ranks - 2) / (ranks - 1)
    shared = ranks * everyone if ranks > 2 and everyone < messages.pair else None
    # If a rank sends faster to all others than to one, the path between two ranks has a limit of its own
    # (`peer`).
    return Link(
        name="within",
        latency=messages.latency,
        bandwidth=max(messages.pair, everyone),
        peer=messages.pair if ranks > 2 and messages.pair < everyone else None,
        shared=shared,
        copy=copies.fetched,
    )


def fit_neighbours(messages: Messages | None) -> Link | None:
    """Return the link between neighbouring ranks as measured, or None if they have no link of their own."""
    if messages is None or messages.neighbours is None:
        return None
    assert messages.neighbours_latency is not None
    return Link(name="pair", latency=messages.neighbours_latency, bandwidth=messages.neighbours)


def crowded(device: Device, messages: Messages | None) -> Device:
    """Return a copy of a device's figures that includes the measured slowdown of computing by messages."""
    if messages is None:
        return device
    # Such that `Device.crowding`, computed from the multiprocessors, is the measured slowdown.
    message_multiprocessors = device.multiprocessors * messages.crowding / (1 + messages.crowding)
    return replace(device, message_multiprocessors=message_multiprocessors, posting=messages.posting)
