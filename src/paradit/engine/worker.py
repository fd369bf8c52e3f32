"""Main function of a rank's process: it joins other ranks, makes videos, and reports the results.

It gets its orders (videos to make) from the driver, the process that hands out work to ranks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import torch

from paradit.config.placement import Placement
from paradit.distributed.world import World, join_world
from paradit.engine.channel import Connection
from paradit.engine.launchers import Seat
from paradit.engine.orders import Inbox, Order
from paradit.engine.rank import rank_program
from paradit.engine.run_folder import RunFolder
from paradit.engine.started_ranks import listen
from paradit.models.spec import ModelSpec
from paradit.progress import Emit, renaming
from paradit.streams import make_safe
from paradit.trace.spans import Tracing, recording

_LOG = logging.getLogger(__name__)
WAIT_SECONDS = 24 * 3600.0
"""Longest time, in seconds, that a rank waits for another. It can be long, because the driver process notices
sooner if a rank has died or hangs."""
HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Main function of a rank's process that takes orders (videos to make) from a driver process."""

    spec: ModelSpec
    placement: Placement
    tracing: Tracing | None = None

    def __call__(self, seat: Seat) -> None:
        """Carry out the driver's orders (videos to make).

        The last message sent to the driver is `done`, or `raised` with a traceback.
        """
        make_safe()
        driver, orders = Connection(seat.address, seat.token, seat.rank), _Orders()
        emit, device = named_for(seat.rank, self.placement, driver.emit), torch.device(seat.device)
        listen(driver, orders.hear, orders.sweep)
        threading.Thread(target=_beat, args=(driver,), daemon=True).start()
        try:
            joined = join_world(seat.rank, seat.ranks, seat.meet, device=device, timeout=WAIT_SECONDS)
            with recording(self.tracing, seat.rank), joined as world:
                _LOG.info("process %d has joined %d ranks, on %s", os.getpid(), seat.ranks, device)
                agree(world, self.placement)
                inbox = orders.inbox
                rank_program(inbox, self.spec, self.placement, emit, world=world, device=device)()
            last: tuple[str, ...] = ("done",)
        except BaseException:
            last = ("raised", traceback.format_exc())
        with contextlib.suppress(OSError):  # the driver may be gone
            driver.send(*last)
        # An orderly exit would wait for messages that failed ranks never send.
        os._exit(last[0] == "raised")


class _Orders:
    """Receiver of the driver's messages in a rank's process.

    It keeps all orders (videos to make), to remove their half-written files later.
    """

    def __init__(self) -> None:
        self.inbox = Inbox()
        self._seen: list[Order] = []

    def hear(self, word: str, values: tuple[Any, ...]) -> None:
        """Handle a message from the driver: a new order, a cancellation, or that no more orders come.

        Before an order is queued, this process's id is written into the folder of the order's run.
        """
        if word == "order":
            order = Order.of(values[0])
            if order.folder is not None:
                RunFolder(order.folder).note_process(os.getpid())
            self._seen.append(order)
            self.inbox.add(order)
        elif word == "cancel":
            self.inbox.cancel(values[0])
        elif word == "end":
            self.inbox.end()

    def sweep(self) -> None:
        """Remove files that this process has left half-written, for all of its orders."""
        for order in self._seen:
            if order.folder is not None:
                RunFolder(order.folder).sweep([order.job], [os.getpid()])


def named_for(rank: int, placement: Placement, emit: Emit) -> Emit:
    """Return a function that passes events on to `emit`, and adds the rank to the name of the stage decode.

    The name is not changed if only one rank decodes.
    """
    names = {"decode": f"decode on rank {rank}"} if len(placement.decode_ranks) > 1 else {}
    return renaming(emit, lambda stage: names.get(stage, stage))


def agree(world: World, placement: Placement) -> None:
    """Check that this rank's placement equals the first rank's, because otherwise both ranks would hang.

    The placements may differ, because each of torchrun's ranks plans for itself, from a calibration file that
    may have changed meanwhile. Raises RuntimeError if they differ.
    """
    mine = repr(placement)
    if world.rank == 0:
        world.publish("placement", mine)
    elif (others := world.lookup("placement")) != mine:
        raise RuntimeError(f"placements differ: rank {world.rank} has {mine}, rank 0 has {others}")


def _beat(driver: Connection) -> None:
    """Send heartbeats to the driver process every `HEARTBEAT_SECONDS`, until that process is gone."""
    wait = threading.Event()
    with contextlib.suppress(OSError):
        while True:
            driver.send("alive")
            wait.wait(HEARTBEAT_SECONDS)
