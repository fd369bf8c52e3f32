"""Channels of expected messages: in order, of any sizes, and however late they are received."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from paradit.distributed.tensor_queue import Channel, Expected
from paradit.distributed.world import World
from paradit.testing import run_world
from paradit.trace.merge import merge
from paradit.trace.spans import CHANNEL, Tracing, recording

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


def slow_to_take(world: World, folder: Path) -> None:
    """Send five messages, of which two may be in flight, to a rank that is slow to take them."""
    channel = Channel(world, 0, [1], depth=2)
    with recording(Tracing(folder), world.rank):
        for number in range(5):
            if world.rank == 0:
                channel.send(torch.full([1000], float(number)))
                world.publish(f"sent {number}")
            else:
                time.sleep(0.2)  # the sender would be further by now
                assert not world.is_published(f"sent {number + 2}")
                assert channel.receive([1000], torch.float32, torch.device("cpu"))[0] == number
        channel.close()


def test_back_pressure_is_seen(tmp_path: Path) -> None:
    run_world(slow_to_take, 2, tmp_path)
    merge(tmp_path, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    waits = [event for event in events if event.get("cat") == CHANNEL and event["pid"] == 0]
    assert [(wait["name"], wait["args"]) for wait in waits[:3]] == [
        ("wait until taken", {"ready": 3, "by": [1]})
    ] * 3
    assert len([event for event in events if event["name"] == "wait for rank 0"]) == 5
