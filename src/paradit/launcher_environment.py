"""Reading of the environment variables by which torchrun or another launcher makes this process a rank.

No other module reads these variables. They may be left over in a shell, so every error says what to unset.
Torch-free.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from paradit.config.errors import InputError
from paradit.config.limits import MAX_RANKS, shown
from paradit.waiting import interruptibly

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""Environment variable that only torchrun sets: whether its agent, not the first rank, hosts the TCPStore."""
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
VARIABLES = (*NEEDED, "LOCAL_RANK", "LOCAL_WORLD_SIZE", AGENT_STORE)


@dataclass(frozen=True, kw_only=True)
class Launched:
    """This process's rank, and where the ranks meet, as a launcher such as torchrun has set them."""

    rank: int
    ranks: int
    local_rank: int
    """Index of the rank among those of its machine; it decides which GPU the rank uses."""
    local_ranks: int | None
    """Number of ranks on this machine; None if the launcher does not say it."""
    address: str
    port: int
    """Port, on the host `address`, at which the ranks meet to form a process group."""
    by_torchrun: bool
    agent_store: bool
    """Whether torchrun's agent hosts the TCPStore in which the ranks meet; otherwise the first rank does."""
    attempt: str
    """Number of times that torchrun has restarted its ranks, as text; empty without torchrun.

    Keys in the agent's store contain it: the store outlives the ranks, and old keys must not be read.
    """
    unset: str
    """Advice for error messages: which variables to unset if no launcher has started this process."""

    @property
    def meeting_point(self) -> str:
        """Address and port at which the ranks meet, as text, such as `host:29500` or `[::1]:29500`."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def launched(environ: Mapping[str, str] = os.environ) -> Launched | None:
    """Return the rank that a launcher has made this process; None if RANK and WORLD_SIZE are not set.

    An empty variable counts as unset. Raises InputError if a variable is missing or not valid.
    """
    said = {name: environ[name].strip() for name in VARIABLES if environ.get(name, "").strip()}
    if "RANK" not in said and "WORLD_SIZE" not in said:
        return None
    unset = f"unset {' '.join(said)}, or start all ranks with torchrun"
    if missing := [name for name in NEEDED if name not in said]:
        there = [name for name in NEEDED if name in said]
        verb, other = ("is" if len(names) == 1 else "are" for names in (there, missing))
        raise InputError(f"{_and(there)} {verb} set, but {_and(missing)} {other} not: {unset}")

    def number(name: str, least: int, most: int, limit: str) -> int:
        text = said[name]
        value = int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else -1
        if not least <= value <= most:
            limits = f"from {least} to {limit}"
            raise InputError(f"{name} must be a whole number {limits}, got {shown(text)}: {unset}")
        return value

    ranks = number("WORLD_SIZE", 1, MAX_RANKS, str(MAX_RANKS))
    rank = number("RANK", 0, ranks - 1, f"{ranks - 1} (WORLD_SIZE is {ranks})")
    local_ranks = None
    if "LOCAL_WORLD_SIZE" in said:
        local_ranks = number("LOCAL_WORLD_SIZE", 1, ranks, f"{ranks} (WORLD_SIZE)")
    here = local_ranks or ranks
    local_rank = rank % here  # launchers number ranks machine by machine
    if "LOCAL_RANK" in said:
        local_rank = number("LOCAL_RANK", 0, here - 1, f"{here - 1} ({here} ranks are on this machine)")
    return Launched(
        rank=rank,
        ranks=ranks,
        local_rank=local_rank,
        local_ranks=local_ranks,
        address=said["MASTER_ADDR"],
        port=number("MASTER_PORT", 1, 65535, "65535"),
        by_torchrun=AGENT_STORE in said,
        agent_store=said.get(AGENT_STORE) == "True",
        attempt=environ.get("TORCHELASTIC_RESTART_COUNT", ""),
        unset=unset,
    )


def is_first_rank() -> bool:
    """Return whether this process writes the run's files.

    True for the first rank that a launcher has started, and for a process that no launcher has started.
    """
    here = launched()
    return here is None or here.rank == 0


def is_spoken_for(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether torchrun's first rank prints errors and results on behalf of this rank. Never raises."""
    return AGENT_STORE in environ and environ.get("RANK", "").strip() not in ("", "0")


def forget_launcher(environ: MutableMapping[str, str] = os.environ) -> None:
    """Unset a launcher's environment variables, in a process that does not join other ranks."""
    for name in VARIABLES:
        environ.pop(name, None)


def check_meeting_point(here: Launched) -> None:
    """Refuse an address that cannot be resolved, or a port that another program uses. Raises InputError."""
    try:
        interruptibly(lambda: socket.getaddrinfo(here.address, here.port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a valid host name"
        raise InputError(f"MASTER_ADDR {shown(here.address)} cannot be found ({why}): {here.unset}") from None
    if here.rank or here.agent_store:  # another process listens at the port
        return
    with socket.socket() as probe:
        # A port counts as free right after a run that used it, as it does for the ranks.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", here.port))
            probe.listen(1)
        except OSError as error:
            raise port_error(here, error) from None


def port_error(here: Launched, error: OSError) -> InputError:
    """Return the error to raise if the first rank cannot listen on the port at which the ranks meet."""
    why = (
        "in use by another program"
        if error.errno == errno.EADDRINUSE
        else f"not available ({error.strerror})"
    )
    return InputError(f"MASTER_PORT {here.port}, where the ranks meet, is {why}: {here.unset}")


def _and(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if names[1:] else names[0]
