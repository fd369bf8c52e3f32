"""Ways to have processes: on this machine, or on others. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from paradit.config.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine on which processes can be started."""

    name: str
    cores: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a launcher can do."""

    replaces: bool
    """Whether it starts ranks anew after one has failed."""
    shared_folder: bool
    """Whether all its ranks see the folders of the process that starts them."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A rank's place, known once it is placed, and how it finds the driver and the other ranks."""

    rank: int
    ranks: int
    machine: str
    local_rank: int
    """Number among the ranks of its machine; it says which GPU the rank takes."""
    local_ranks: int
    threads: int
    device: str
    """`cpu`, or `cuda:1`."""
    meet: Path
    """The file by which the ranks meet."""
    address: str
    """Where the driver listens."""
    token: str = field(repr=False)
    """What the driver wants to hear first."""


Work = Callable[[Seat], None]
"""The main function of a rank's process. It is pickled, and does not return."""


class Launcher(Protocol):
    """A way to have processes. Each world has a launcher of its own."""

    capabilities: Capabilities

    def machines(self) -> list[Machine]:
        """Return the machines that there are."""

    def start(
        self, ranks: int, work: Work, *, address: str, token: str, preload: Sequence[str]
    ) -> list[Seat]:
        """Place and start ranks that do `work`; returns where each is.

        preload: modules that all of them import.
        """

    def ended(self) -> dict[int, str]:
        """Return the ranks whose processes have ended, each with how it has."""

    def said(self) -> dict[int, str]:
        """Return what ranks have written to their standard streams since the last time."""

    def end(self) -> None:
        """End all that are left, at once, and wait until they are gone. May be called twice."""


LAUNCHERS: Registry[Callable[[], Launcher]] = Registry(
    "launcher", "paradit.launchers", {"local": "paradit.engine.launchers.local:LocalLauncher"}
)

CHOICE = "PARADIT_LAUNCHER"
"""The environment variable that names another launcher than `local`."""


def new_launcher() -> Launcher:
    """Return a launcher for a world. Raises InputError if PARADIT_LAUNCHER names none."""
    return LAUNCHERS.find(os.environ.get(CHOICE) or "local")()


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_rank(ranks: int) -> int:
    """The machine's cores over its ranks, unless OMP_NUM_THREADS says otherwise."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else max(1, num_cores() // ranks)
