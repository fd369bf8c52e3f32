"""Short-lived groups of gloo processes for tests, each for one function call on every rank.

A fork server with torch preloaded starts a group in about a tenth of a second. So each call gets a group of
its own, and nothing is left over from a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from paradit.engine.launchers.local import LocalLauncher
from paradit.engine.started_ranks import call_on_ranks

T = TypeVar("T")

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}
"""Environment variables that make gloo use the loopback interface.

Looking up the host's name instead is slow, and fails on some machines.
"""


class WorldError(RuntimeError):
    """Error raised if a rank of a test failed or ran too long; it holds every failed rank's own report."""


def run_world(work: Callable[..., T], num_ranks: int, *args: object, timeout: float = 60.0) -> list[T]:
    """Run `work(world, *args)` on `num_ranks` gloo processes of one thread; return the results by rank.

    `work` is a module-level function, so that it can be pickled; `args` and the results must be picklable,
    too. timeout: seconds after which ranks that still run are reported with their stacks. Raises `WorldError`
    with each failed rank's traceback, signal or stack.
    """
    launcher = LocalLauncher(threads=1, device="cpu", environ=LOOPBACK, with_main=True)
    preload = ["paradit.testing.preload"]
    called = call_on_ranks(launcher, num_ranks, work, *args, timeout=timeout, preload=preload)
    if called.failures:
        told = (f"rank {rank} of {num_ranks}: {why}" for rank, why in sorted(called.failures.items()))
        raise WorldError("\n".join(told))
    return [called.results[rank] for rank in range(num_ranks)]
