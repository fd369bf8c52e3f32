"""Ranks that this process has started: their messages, their output, and functions called on all of them."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from faulthandler import dump_traceback
from functools import partial
from typing import Any

from paradit.engine.channel import ENDED, EVENT, LOG, Connection, Hub, Message, event_of
from paradit.engine.launchers import Launcher, Seat, Work
from paradit.logs import send_records, take_record, wanted_level
from paradit.models.registry import family
from paradit.models.spec import ModelSpec
from paradit.progress import Emit, Progress

LISTEN_SECONDS = 0.2
LOG_LINES = 200
"""Number of lines of a rank's output that are kept, at most."""
GRACE_SECONDS = 2.0
"""Seconds after the first failure in which other ranks may still report what has happened to them."""
LAST_WORDS = ("done", "stopped", "raised", "returned", ENDED)
"""Kinds of messages after which a rank sends no more."""


def preloaded(spec: ModelSpec) -> list[str]:
    """Return the names of modules that every rank of this model imports.

    A launcher that forks ranks from a fork server loads them there, once for all ranks.
    """
    return ["paradit.engine.rank", family(spec.pipeline_class).module]


class Ranks:
    """Processes of ranks that were started together, with their messages and last lines of output."""

    def __init__(self, launcher: Launcher, ranks: int, work: Work, preload: Sequence[str] = ()) -> None:
        self._launcher, self._hub = launcher, Hub()
        self.are_replaced = launcher.capabilities.replaces
        """Whether the launcher can start ranks again after a rank has failed."""
        self._quiet: set[int] = set()
        """Ranks that send no more messages, because they have sent one that says how their work ended."""
        self._logs: dict[int, deque[str]] = {rank: deque(maxlen=LOG_LINES) for rank in range(ranks)}
        self._rest: dict[int, str] = {}
        """Mapping from rank to the unfinished last line of its output."""
        if (level := wanted_level()) is not None:
            self._hub.tell_all(LOG, level)
        address, token = self._hub.address, self._hub.token
        try:
            self.seats = launcher.start(ranks, work, address=address, token=token, preload=preload)
        except BaseException:
            self.end()
            raise

    def hear(self, timeout: float = LISTEN_SECONDS) -> list[tuple[int, Message]]:
        """Return the messages that ranks have sent, as pairs (rank, message).

        If a rank's process ends before the rank has said that its work has ended, a message `ended` is added,
        which says how the process ended. timeout: seconds to wait for the first message.
        """
        found = []
        for rank, message in self._hub.hear(timeout):
            if message[0] == LOG:
                take_record(rank, *message[1])
            elif rank not in self._quiet:
                if message[0] == ENDED:
                    message = ENDED, (self._how_it_ended(rank),)  # noqa: PLW2901
                found.append((rank, message))
            if message[0] in LAST_WORDS:
                self._quiet.add(rank)
        for rank, how in self._launcher.ended().items():
            # A rank that the hub still knows may have sent messages that have not been read yet.
            if rank not in self._quiet and not self._hub.knows(rank):
                self._quiet.add(rank)
                found.append((rank, (ENDED, (how,))))
        self._read_logs()
        return found

    def send_to(self, rank: int, word: str, *values: object) -> None:
        """Send a message to one rank.

        word: kind of the message.
        """
        self._hub.send_to(rank, word, *values)

    def tell_all(self, word: str, *values: object) -> None:
        """Send a message to all ranks, also to those that are still starting.

        word: kind of the message.
        """
        self._hub.tell_all(word, *values)

    def log(self, rank: int) -> list[str]:
        """Return the last lines that a rank's process has written to stdout and stderr."""
        self._read_logs()
        return [*self._logs[rank], *([rest] if (rest := self._rest.get(rank)) else [])]

    def end(self) -> None:
        """Kill the processes of all ranks, and close the channel to them. May be called twice."""
        self._launcher.end()
        self._hub.close()

    def _read_logs(self) -> None:
        for rank, text in self._launcher.said().items():
            *lines, self._rest[rank] = (self._rest.get(rank, "") + text).split("\n")
            self._logs[rank] += lines

    def _how_it_ended(self, rank: int) -> str:
        # A dying process closes its connection a little before its exit code can be had.
        deadline = time.monotonic() + GRACE_SECONDS
        while rank not in (ended := self._launcher.ended()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return ended.get(rank, "hung up")


def listen(
    connection: Connection, hear: Callable[[str, tuple[Any, ...]], None], left: Callable[[], None]
) -> None:
    """Start a thread, in a rank's process, that passes the driver's messages to `hear` as they come.

    The driver is the process that hands out work to ranks. The thread itself writes stacks and sends log
    records if the driver asks for them. If the driver is gone, the thread calls `left`, and ends the process.
    """

    def take() -> None:
        try:
            while True:
                word, values = connection.receive()
                if word == "stacks":
                    dump_traceback(sys.stderr, all_threads=True)
                elif word == LOG:
                    send_records(values[0], partial(connection.send, LOG))
                else:
                    hear(word, values)
        except EOFError:
            left()
            os._exit(1)  # the main thread may be waiting for other ranks, where no exception reaches it

    threading.Thread(target=take, name="listen to the driver", daemon=True).start()


@dataclass(frozen=True, kw_only=True)
class Called:
    """Outcome of a function that was called on every rank: results and failures."""

    results: dict[int, Any]
    """Mapping from rank to returned value, for the ranks on which the function has returned."""
    failures: dict[int, str]
    """Mapping from each failed rank to its traceback, or to how its process has ended.

    The first rank that failed comes first.
    """


def call_on_ranks(
    launcher: Launcher,
    ranks: int,
    work: Callable[..., Any],
    *args: object,
    timeout: float = 24 * 3600.0,
    emit: Emit | None = None,
    preload: Sequence[str] = (),
) -> Called:
    """Start ranks, call `work(world, *args)` on each, and return the results and failures.

    timeout: seconds after which ranks that still run count as failed. emit: function called with the first
    rank's events; if it is given, `work` gets a `Progress` as an argument after `world`. preload: names of
    modules that all ranks import.

    `work` must be a function of a module, so that it can be pickled; `args` and the results are pickled, too.
    Ranks unpickle the call that the launcher hands them, and this process unpickles the results that they
    send.
    """
    content = pickle.dumps((work, args, timeout, emit is not None))
    started = Ranks(launcher, ranks, _Call(content), preload)
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    deadline = time.monotonic() + timeout
    try:
        while len(results) + len(failures) < ranks and time.monotonic() < deadline:
            for rank, (word, values) in started.hear(min(LISTEN_SECONDS, timeout)):
                if word == "returned":
                    results[rank] = pickle.loads(values[0])
                elif word == EVENT and emit is not None:
                    emit(event_of(*values))
                elif word in LAST_WORDS:
                    failures[rank] = values[0]
                    # Other ranks wait for the failed one in vain: they report soon, or never.
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        why = (
            "was still running when another rank failed" if failures else f"did not end within {timeout:g} s"
        )
        silent = [rank for rank in range(ranks) if rank not in results and rank not in failures]
        failures.update(_stacks(started, silent, why))
    finally:
        started.end()
    return Called(results=results, failures=failures)


def _stacks(started: Ranks, silent: list[int], why: str) -> dict[int, str]:
    """Return, for each rank that has not ended, a text with the stacks of its threads.

    silent: the ranks that have not ended. why: first line of each text, which says why the rank counts as
    failed.
    """
    for rank in silent:
        started.send_to(rank, "stacks")
    if silent:
        time.sleep(LISTEN_SECONDS)
    return {rank: "\n".join([why, *started.log(rank)]) for rank in silent}


class _Call:
    """Main function of a rank that calls one pickled function, and sends back its pickled result."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __call__(self, seat: Seat) -> None:
        from torch import device

        from paradit.distributed.world import join_world

        connection = Connection(seat.address, seat.token, seat.rank)
        listen(connection, lambda *_: None, lambda: None)
        try:
            work, args, timeout, telling = pickle.loads(self._content)
            if telling:
                args = Progress(connection.emit if seat.rank == 0 else lambda _: None), *args
            with join_world(
                seat.rank, seat.ranks, seat.meet, device=device(seat.device), timeout=timeout
            ) as world:
                result = work(world, *args)
            last: tuple[str, bytes | str] = "returned", pickle.dumps(result)
        except BaseException:
            last = "raised", traceback.format_exc()
        with suppress(OSError):
            connection.send(*last)
        # An orderly exit would wait for messages that failed ranks never send.
        os._exit(0)
