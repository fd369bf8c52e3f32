"""Channels of expected messages: in order, of any sizes, and however late they are received."""

import time
from collections.abc import Iterator

import torch

from paradit.distributed.tensor_queue import Channel, Expected
from paradit.distributed.world import World
from paradit.testing import run_world

ROUNDS = 12


def shapes_of(turn: int) -> list[tuple[int, ...]]:
    return [(1, turn % 4 + 1, 3), (turn % 3,)]


def messages_of(turn: int) -> list[torch.Tensor]:
    return [torch.full(shape, 10.0 * turn + part) for part, shape in enumerate(shapes_of(turn))]


def send_and_receive(world: World, ahead: int) -> None:
    """Exchange messages in both directions at once, with one side slower than the other."""
    other = 1 - world.rank
    outgoing = Channel(world.way_back(), world.rank, [other], depth=3)
    coming: Iterator[list[tuple[int, ...]]] = (shapes_of(turn) for turn in range(ROUNDS))
    expected = Expected(world, other, coming, torch.float32, ahead)
    for turn in range(ROUNDS):
        for message in messages_of(turn):
            outgoing.send(message)
        if world.rank == 1:
            time.sleep(0.01)
        received = expected.receive()
        time.sleep(0.005)  # messages that arrive meanwhile must not change the received ones
        for message, wanted in zip(received, messages_of(turn), strict=True):
            assert torch.equal(message, wanted)
    outgoing.close()


def test_expected_messages() -> None:
    for ahead in (1, 2):
        run_world(send_and_receive, 2, ahead)
