"""Start of a process group: ranks find each other, report which are missing, and can be interrupted."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from threading import Event

import torch
import torch.distributed as dist
from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from paradit.config.errors import InputError, RankError
from paradit.config.plugins import SWITCH, plugins
from paradit.launcher_environment import Launched, port_error
from paradit.waiting import interruptibly

POLL_SECONDS = 0.02
LOOKS = 50
"""Number of times that the store in which ranks register is polled between two checks for missing ranks."""
TELL_SECONDS = 5.0
"""Seconds until a message first tells the user which ranks have not joined, and between its updates."""
CONNECT_SECONDS = 1.0
GREETING_SECONDS = 30.0
"""Seconds within which the ranks' TCPStore must answer. If it does not, another program is assumed to listen
at its address."""
LEAVE_SECONDS = 1.0
"""Seconds that an interrupted join of the process group waits for its background thread to end."""
NAMED = 8
"""Largest number of missing ranks that a message lists; it shortens the rest to "..."."""


class Joining:
    """Process of joining a process group as one rank; keeps track of the ranks that are still missing."""

    def __init__(
        self, rank: int, size: int, meet: Path | Launched, device: torch.device, limit: timedelta
    ) -> None:
        """Prepare to join the other ranks, but do not wait for them yet.

        meet: where ranks find each other: the file of a `FileStore`, or the address and port that a launcher
        has declared. limit: longest time to wait for the other ranks.
        """
        self._rank, self._size, self._meet = rank, size, meet
        self._device, self._limit = device, limit
        self._deadline = time.monotonic() + limit.total_seconds()
        self._left, self._ended = Event(), Event()
        self._why_alone = ""
        """Reason why this rank has not reached the store at which ranks meet; empty once it has."""
        self._missing: list[int] = []

    def join(self, warn: Callable[[str], None] | None) -> Store:
        """Wait for all ranks, create the default process group, and return the store that the ranks share.

        Another thread does all waiting, so that this thread can handle signals. warn: function that is called
        after a few seconds with a message about the missing ranks; it is called on the lowest rank that is
        present. Raises RankError if joining takes too long or a rank ends meanwhile. Raises InputError if
        another program answers at the ranks' address, if the port is taken, or if ranks have different
        plug-ins.
        """
        said = ""

        def meanwhile() -> None:
            nonlocal said
            told, said = said, self._state()
            if warn is not None and said and said != told:
                warn(said)

        try:
            return interruptibly(self._join, meanwhile, TELL_SECONDS)
        except BaseException:
            self._left.set()  # the other thread ends at its next poll
            # A thread that returns from C++ while Python shuts down would abort the process.
            self._ended.wait(LEAVE_SECONDS)
            raise

    def _join(self) -> Store:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)  # each thread has a current device of its own
            # torchrun's store outlives ranks that it restarts: keys of dead ranks must not be read.
            attempt = self._meet.attempt if isinstance(self._meet, Launched) else ""
            store = PrefixStore(f"attempt {attempt}", self._open())
            store.set_timeout(self._limit)
            here = PrefixStore("here", store)
            self._wait_for_all(here)
            self._compare_plugins(here)
            dist.init_process_group(
                "nccl" if self._device.type == "cuda" else "gloo",
                store=PrefixStore("group", store),
                rank=self._rank,
                world_size=self._size,
                timeout=self._limit,
            )
            return store
        finally:
            self._ended.set()

    def _open(self) -> Store:
        if isinstance(self._meet, Path):
            return FileStore(str(self._meet), self._size)
        here = self._meet
        if self._rank == 0 and not here.agent_store:  # otherwise torchrun's agent hosts the store
            return self._keep_store(here)
        self._wait_for_answer(here)
        self._why_alone = "something else answers there"
        try:
            return self._store(here.address, here.port)
        except dist.DistNetworkError:
            where = here.meeting_point
            raise InputError(f"the program that answers at {where} is not a rank: {here.unset}") from None

    def _keep_store(self, here: Launched) -> Store:
        """Start the TCPStore that the other ranks connect to, and return it; only rank 0 calls it."""
        try:
            # Use localhost: this machine may not be able to reach itself by the name that others use.
            return self._store("localhost", here.port, is_master=True)
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            raise port_error(here, OSError(errno.EADDRINUSE, "")) from None

    @staticmethod
    def _store(address: str, port: int, *, is_master: bool = False) -> Store:
        # Short, to notice another program at this address; `_join` sets the real limit afterwards. Not torch
        # but `_wait_for_all` waits for the other ranks, so that missing ones can be named.
        limit = timedelta(seconds=GREETING_SECONDS)
        return TCPStore(address, port, is_master=is_master, timeout=limit, wait_for_workers=False)

    def _wait_for_answer(self, here: Launched) -> None:
        """Wait until a program listens at the address where ranks meet."""
        # torch could also wait for it, but would print warnings.
        self._why_alone = "nothing answers there"
        while True:
            with suppress(OSError), socket.create_connection((here.address, here.port), CONNECT_SECONDS):
                return
            self._pause()

    def _wait_for_all(self, here: Store) -> None:
        """Register this rank in the ranks' store, and wait until all ranks have registered."""
        here.set(str(self._rank), json.dumps(plugins()))
        self._why_alone = ""
        ranks = list(map(str, range(self._size)))
        for number in count():
            try:
                if here.check(ranks):
                    return
                if number % LOOKS == 0:  # seldom, because it asks the store once for each rank
                    self._missing = [rank for rank in range(self._size) if not here.check([str(rank)])]
            except dist.DistError:
                raise RankError("rank 0 has ended while others were still joining") from None
            self._pause()

    def _compare_plugins(self, here: Store) -> None:
        """Raise InputError, on all ranks alike, if a rank's plug-ins differ from the first rank's."""
        first, *others = (set(json.loads(here.get(str(rank)))) for rank in range(self._size))
        for rank, plugins_there in enumerate(others, 1):
            if more := sorted(first ^ plugins_there):  # what only one of the two ranks has
                has = 0 if more[0] in first else rank
                raise InputError(
                    f"ranks 0 and {rank} have different plug-ins: only rank {has} has {more[0]}; install the "
                    f"same ones for all, or set {SWITCH}=off"
                )

    def _pause(self) -> None:
        if self._left.wait(POLL_SECONDS):
            raise RankError("the other ranks no longer wait for this one to join")
        if time.monotonic() > self._deadline:
            waited = f"after {self._limit.total_seconds():g} s"
            raise RankError(f"{self._state() or f'rank {self._rank} waits for others'}, {waited}")

    def _state(self) -> str:
        """Return a message for the user about ranks that have not joined: which, where, and what to do.

        The message is empty if no rank is missing, or if a rank with a lower number has joined, because that
        rank has the same message.
        """
        if self._why_alone:
            missing, why = [0], f": {self._why_alone}"
        else:
            missing, why = self._missing, ""
            if not missing or any(rank not in missing for rank in range(self._rank)):
                return ""
        names = ", ".join(map(str, missing[:NAMED])) + (", ..." if missing[NAMED:] else "")
        who = f"rank {self._rank} waits for {'ranks' if missing[1:] else 'rank'} {names} of {self._size}"
        if isinstance(self._meet, Path):
            return who
        return f"{who} at {self._meet.meeting_point}{why} (if none is meant to start: {self._meet.unset})"
