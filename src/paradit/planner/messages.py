"""Links, fitted to what messages between a machine's ranks took. `engine.calibrate` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paradit.planner.calibration import Copies
from paradit.planner.hardware import Device, Link, are_neighbours


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What messages between ranks took."""

    latency: float
    pair: float
    """Bytes/s of a rank, while two send each other; no neighbours, where these have their own link."""
    all: float
    """Bytes/s of a rank, while all send to all."""
    crowding: float = 0.0
    """How much longer computing takes beside messages, in parts of the time for which they travel."""
    posting: float = 0.0
    """And by how many seconds for every exchange, however small."""
    neighbours: float | None = None
    """Bytes/s of a rank, while 0 and 1, or 2 and 3, ... send each other; None: as others do."""
    neighbours_latency: float | None = None


@dataclass(frozen=True)
class PairSeconds:
    """What messages between two ranks took, while no others sent any."""

    latency: float
    each_byte: float


CLEARLY = 1.5
"""Neighbours have a link of their own where the slowest of them, whenever it was measured, is quicker than
the quickest of others by this factor. An NVLink bridge is 2 times as quick as the port of PCIe 4.0, and 3
times as what goes there from one device to another (links.toml). Links that are alike differ by some tenths
on a busy machine, and not all of the one kind each time to one side."""


def neighbours_of(measured: Mapping[tuple[int, int], Sequence[PairSeconds]]) -> PairSeconds | None:
    """Of the link between neighbours, the slowest of them; None where it is that of all.

    measured: of pairs of ranks, each several times.
    """
    ranks = {rank for pair in measured for rank in pair}
    if not all(rank ^ 1 in ranks for rank in ranks):
        return None  # one has no neighbour
    inner = [one for pair, times in measured.items() if are_neighbours(*pair) for one in times]
    across = [one.each_byte for pair, times in measured.items() if not are_neighbours(*pair) for one in times]
    if not across:
        return None
    slowest = PairSeconds(max(one.latency for one in inner), max(one.each_byte for one in inner))
    return slowest if CLEARLY * slowest.each_byte < min(across) else None


def slowest_pair(measured: Mapping[tuple[int, int], Sequence[PairSeconds]], *, neighbours_too: bool) -> float:
    """Seconds of a byte, each pair by the time when it was disturbed least."""
    return max(
        min(one.each_byte for one in times)
        for pair, times in measured.items()
        if neighbours_too or not are_neighbours(*pair)
    )


def fit_link(messages: Messages | None, copies: Copies, ranks: int) -> Link:
    """What a message takes; where all at once are slower than two, they share something.

    messages: None where there is one rank, whose link is never used.
    """
    if messages is None:
        return Link(name="within", latency=0.0, bandwidth=copies.copied, copy=copies.fetched)
    everyone = messages.all
    if messages.neighbours is not None:
        # The neighbour's messages have their own link, and are done sooner.
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
    """What a message between neighbours takes, where they have a link of their own."""
    if messages is None or messages.neighbours is None:
        return None
    assert messages.neighbours_latency is not None
    return Link(name="pair", latency=messages.neighbours_latency, bandwidth=messages.neighbours)


def crowded(device: Device, messages: Messages | None) -> Device:
    """The device, with what messages take of its computing."""
    if messages is None:
        return device
    message_units = device.units * messages.crowding / (1 + messages.crowding)
    return replace(device, message_units=message_units, posting=messages.posting)
