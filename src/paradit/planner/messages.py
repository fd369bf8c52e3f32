"""Fit a machine's links to the message times that `engine.calibrate` measured between its ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paradit.planner.calibration import Copies
from paradit.planner.hardware import Device, Link, are_neighbours


@dataclass(frozen=True, kw_only=True)
class Messages:
    """Measured rates, latencies and side costs of messages between a machine's ranks."""

    latency: float
    pair: float
    """Bytes/s that a rank sends while one pair of ranks exchanges data; not a pair of neighbours, if
    neighbours have their own link."""
    all: float
    """Bytes/s that a rank sends while all ranks send to all others."""
    crowding: float = 0.0
    """Slowdown of computing beside messages, as a fraction of the time for which they travel."""
    posting: float = 0.0
    """Seconds that each exchange, however small, adds to the computing beside it."""
    neighbours: float | None = None
    """Bytes/s that a rank sends while neighbours (0 and 1, 2 and 3, ...) exchange data; None: neighbours
    have no link of their own."""
    neighbours_latency: float | None = None


@dataclass(frozen=True)
class PairSeconds:
    """Latency in seconds, and seconds per byte, of messages between two ranks while no others send."""

    latency: float
    each_byte: float


CLEARLY = 1.5
"""Factor by which the slowest neighbours, in any measurement, must be quicker than the quickest other pair
for neighbours to count as having a link of their own. An NVLink bridge is 2 times as quick as the port
of PCIe 4.0, and 3 times as quick as a PCIe transfer between two devices (links.toml). Links of one kind
differ by some tenths on a busy machine, and the same pairs are not the slower ones each time."""


def neighbours_of(measured: Mapping[tuple[int, int], Sequence[PairSeconds]]) -> PairSeconds | None:
    """Return the slowest measured times of the link between neighbours, or None if it is like all others.

    measured: several measurements of each pair of ranks.
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
    """Return the seconds per byte of the slowest pair of ranks, each pair by its least disturbed measurement.

    neighbours_too: whether pairs of neighbours count.
    """
    return max(
        min(one.each_byte for one in times)
        for pair, times in measured.items()
        if neighbours_too or not are_neighbours(*pair)
    )


def fit_link(messages: Messages | None, copies: Copies, ranks: int) -> Link:
    """Return the link within a machine that fits its measured messages.

    If all ranks at once are slower than a pair, they share the link's total rate (`shared`). messages: None
    for a single rank, whose link is never used.
    """
    if messages is None:
        return Link(name="within", latency=0.0, bandwidth=copies.copied, copy=copies.fetched)
    everyone = messages.all
    if messages.neighbours is not None:
        # A neighbour's messages take their own, faster link, so the common link carries only the others.
        everyone *= (ranks - 2) / (ranks - 1)
    shared = ranks * everyone if ranks > 2 and everyone < messages.pair else None
    return Link(
        name="within",
        latency=messages.latency,
        bandwidth=max(messages.pair, everyone),
        peer=messages.pair if ranks > 2 and messages.pair < everyone else None,
        shared=shared,
        copy=copies.fetched,
    )


def fit_neighbours(messages: Messages | None) -> Link | None:
    """Return the link between neighbouring ranks, or None if they have none of their own."""
    if messages is None or messages.neighbours is None:
        return None
    assert messages.neighbours_latency is not None
    return Link(name="pair", latency=messages.neighbours_latency, bandwidth=messages.neighbours)


def crowded(device: Device, messages: Messages | None) -> Device:
    """Return the device with the measured slowdown of computing beside messages set in its figures."""
    if messages is None:
        return device
    message_units = device.units * messages.crowding / (1 + messages.crowding)
    return replace(device, message_units=message_units, posting=messages.posting)
