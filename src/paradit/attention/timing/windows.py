"""Planner's simulation of a long video's attention, in which a frame block also reads its neighbours."""

from __future__ import annotations

from paradit.attention.timing.head_exchange import all_in_first, incoming
from paradit.distributed.shares import chunk_boxes
from paradit.planner.discrete_events import Message
from paradit.planner.step import Branch, Layer


def window_layer(branch: Branch) -> Layer:
    """Return a function that simulates, for the planner, one transformer layer of a long video's frame block.

    Several ranks share the tokens. In the simulation, as in `attention.window.windowed_over`, all data arrive
    first, and each rank then computes whole heads.
    """
    return all_in_first(branch, 1, whole_heads=True)


def window_moves(branch: Branch) -> list[Message]:
    """Return the simulated messages between ranks in a layer of a long video whose tokens they share."""
    (chunk,) = chunk_boxes(branch.shares, 1, whole_heads=True)
    return [*incoming(branch, chunk), branch.results(chunk.work)]
