"""Channel between a driver and its ranks, and the processes that the local launcher starts."""

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.engine.channel import ENDED, EVENT, Connection, Hub, Message, event_of
from paradit.engine.events import EVENTS, Finished
from paradit.engine.job import Job
from paradit.engine.launchers import LAUNCHERS, Seat
from paradit.engine.orders import Inbox, Order
from paradit.engine.started_ranks import Ranks
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.progress import Event
from sample_events import sample

PATIENCE = 60.0


def heard(hub: Hub | Ranks, count: int) -> list[tuple[int, Message]]:
    found: list[tuple[int, Message]] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < deadline:
        found += hub.hear(0.1)
    return found


@pytest.mark.parametrize("kind", EVENTS.values(), ids=EVENTS)
def test_events_travel_as_plain_values(kind: type[Event]) -> None:
    hub = Hub()
    rank = Connection(hub.address, hub.token, 3)
    rank.emit(sample(kind))
    ((number, (word, values)),) = heard(hub, 1)
    assert (number, word) == (3, EVENT)
    assert event_of(*values) == sample(kind)
    hub.close()


def test_words_for_all_reach_also_those_that_come_late() -> None:
    hub = Hub()
    hub.tell_all("order", {"number": 0})
    first = Connection(hub.address, hub.token, 0)
    first.send("alive")
    heard(hub, 1)
    hub.tell_all("order", {"number": 1})
    late = Connection(hub.address, hub.token, 1)
    late.send("alive")
    heard(hub, 1)
    for rank in (first, late):
        assert [rank.receive() for _ in range(2)] == [("order", ({"number": n},)) for n in range(2)]
    hub.close()
    with pytest.raises(EOFError):
        late.receive()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5 + b"\xff" * 3, b"\0" * 7 + b"\1\xc1"])
def test_strangers_are_hung_up_on(said: bytes) -> None:
    hub = Hub()
    host, _, port = hub.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as stranger:
        stranger.sendall(said)
        for _ in range(5):
            assert hub.hear(0.05) == []
        assert stranger.recv(1) == b""
    wrong = Connection(hub.address, "0" * len(hub.token), 0)
    taken = Connection(hub.address, hub.token, 1)
    taken.send("alive")
    assert heard(hub, 1) == [(1, ("alive", ()))]
    again = Connection(hub.address, hub.token, 1)
    for _ in range(5):
        assert hub.hear(0.05) == []
    for rank in (wrong, again):
        with pytest.raises(EOFError):
            rank.receive()
    with pytest.raises(ValueError, match="no event"):
        event_of("Exploit", {})
    with pytest.raises(ValueError, match="result"):
        event_of("Finished", {"result": 3})
    hub.close()


def test_orders_are_the_same_after_their_way() -> None:
    spec = read_spec(find_model("shapes"))
    request = resolve(Request.of(prompt="a", method="dualparal", prompts_at=((0.5, "b"),)), spec)
    job = Job(request=request, output="a/b.mp4", latents=Path("l.safetensors"), index=1, count=3)
    order = Order(number=7, job=job, folder=Path("/runs/a"), is_denoised=True, checkpoint_steps=2)
    hub = Hub()
    rank = Connection(hub.address, hub.token, 0)
    hub.tell_all("order", order.plain())
    rank.send("alive")
    heard(hub, 1)
    assert Order.of(rank.receive()[1][0]) == order
    hub.close()


def test_an_inbox_waits_and_knows_what_is_not_wanted() -> None:
    spec = read_spec(find_model("shapes"))
    job = Job(request=resolve(Request(prompt="a"), spec), output="a.mp4", latents=None)
    orders = [Order(number=number, job=job, folder=None, replica=number % 2) for number in range(4)]
    inbox = Inbox()
    assert inbox.take(wait=False) is None
    threading.Timer(0.05, inbox.add, [orders[0]]).start()
    assert inbox.first() == orders[0]
    assert inbox.take(wait=True) == orders[0]
    inbox.replica = 1
    for order in orders[1:]:
        inbox.add(order)
    inbox.cancel(3)
    inbox.end()
    assert [inbox.take(wait=True) for _ in range(3)] == [orders[1], orders[3], None]
    assert [inbox.is_wanted(order) for order in orders] == [True, True, True, False]


def speak(seat: Seat) -> None:
    """Report what this process was started with, and end in a way that depends on the rank."""
    rank = Connection(seat.address, seat.token, seat.rank)
    rank.send("arguments", Path("/proc/self/cmdline").read_text(), repr(seat))
    print("a line of rank", seat.rank, flush=True)
    if seat.rank:
        os.kill(os.getpid(), 9)
    rank.send("done")
    os._exit(0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_started_processes_their_logs_and_their_ends() -> None:
    launcher = LAUNCHERS.find("local")()
    (machine,) = launcher.machines()
    assert machine.cores >= 1
    ranks = Ranks(launcher, 2, speak)
    said: dict[str, Any] = {}
    for rank, (word, values) in heard(ranks, 4):
        said.setdefault(word, {})[rank] = values
    assert [(seat.rank, seat.local_rank, seat.local_ranks) for seat in ranks.seats] == [(0, 0, 2), (1, 1, 2)]
    for seat in ranks.seats:
        arguments, shown = said["arguments"][seat.rank]
        assert seat.token not in arguments
        assert seat.token not in shown
    assert said["done"] == {0: ()}
    assert said[ENDED] == {1: ("ended by SIGKILL",)}
    assert [ranks.log(rank) for rank in range(2)] == [[f"a line of rank {rank}"] for rank in range(2)]
    ranks.end()
    ranks.end()


def test_unknown_launchers_are_refused() -> None:
    with pytest.raises(InputError, match="launcher must be one of local"):
        LAUNCHERS.find("locale")
    assert Finished in EVENTS.values()
