"""Launchers: ways to start the processes of ranks, on this machine or on others. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from paradit.config.plugins import Registry


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Machine on which processes of ranks can be started."""

    name: str
    cores: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Description of what a launcher can do; launchers differ in these respects."""

    replaces: bool
    """Whether the launcher can start ranks again after a rank has failed."""
    shared_folder: bool
    """Whether all ranks can access the folders of the process that starts them."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Description of a rank, for its process: its machine and device, and how to reach the other ranks."""

    rank: int
    ranks: int
    machine: str
    local_rank: int
    """Index of the rank, from 0, among those of its machine; it decides which GPU the rank uses."""
    local_ranks: int
    threads: int
    device: str
    """Device to compute on, such as `cpu` or `cuda:1`."""
    meet: Path
    """Path to the file through which the ranks find one another to form a process group."""
    address: str
    """Address (`host:port`) at which the driver, the process that hands out work to ranks, listens."""
    token: str = field(repr=False)
    """Secret that the driver process expects in a rank's first message."""


Work = Callable[[Seat], None]
"""Main function of a rank's process; it receives the rank's `Seat`.

It is pickled, and does not return.
"""


class Launcher(Protocol):
    """Interface of a launcher, which starts the processes of all ranks, watches them and ends them."""

    capabilities: Capabilities

    def machines(self) -> list[Machine]:
        """Return the machines on which ranks can be started."""

    def start(
        self, ranks: int, work: Work, *, address: str, token: str, preload: Sequence[str]
    ) -> list[Seat]:
        """Start ranks that run `work`, and return the description (`Seat`) of each.

        address, token: address of the driver process, and the secret that it expects from a rank; both are in
        every description. preload: names of modules that all ranks import.
        """

    def ended(self) -> dict[int, str]:
        """Return a mapping from each rank whose process has ended to how it ended, in words."""

    def said(self) -> dict[int, str]:
        """Return a mapping from each rank to what it has written to stdout and stderr since the last call."""

    def end(self) -> None:
        """Kill all processes of ranks that still run, and wait until they are gone. May be called twice."""


LAUNCHERS: Registry[Callable[[], Launcher]] = Registry(
    "launcher", "paradit.launchers", {"local": "paradit.engine.launchers.local:LocalLauncher"}
)

CHOICE = "PARADIT_LAUNCHER"
"""Name of the environment variable that selects a launcher other than `local`."""


def find_launcher() -> Callable[[], Launcher]:
    """Return the launcher class that the environment variable PARADIT_LAUNCHER names.

    Raises InputError if it names none.
    """
    return LAUNCHERS.find(os.environ.get(CHOICE) or "local")


def new_launcher() -> Launcher:
    """Return a new launcher, of the kind that PARADIT_LAUNCHER names, or else `local`.

    Raises InputError if there is no launcher of this name.
    """
    return find_launcher()()


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_rank(ranks: int) -> int:
    """Return the number of CPU threads for each rank: OMP_NUM_THREADS if set, else its share of the cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else max(1, num_cores() // ranks)
