"""Start a world of gloo processes for one piece of work, and report what every rank says.

A fork server with torch preloaded makes a world in about a tenth of a second, so each piece of work gets a
world of its own: nothing is left over from a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from paradit.engine.launchers.local import LocalLauncher
from paradit.engine.started import call_on_ranks

T = TypeVar("T")

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}
"""Looking the host's name up is slow, and fails on some machines."""


class WorldError(RuntimeError):
    """Some rank failed, or did not end in time; the message has every rank's own words."""


def run_world(work: Callable[..., T], num_ranks: int, *args: object, timeout: float = 60.0) -> list[T]:
    """`work(world, *args)` on `num_ranks` gloo processes, one thread each: the results, by rank.

    `work` is a function of a module, so that it can be pickled, as can `args` and the results. It asserts
    what it knows. Raises `WorldError` with each failed rank's traceback or signal; on a time-out with every
    rank's stack.
    """
    launcher = LocalLauncher(threads=1, device="cpu", environ=LOOPBACK, with_main=True)
    preload = ["paradit.testing.preload"]
    called = call_on_ranks(launcher, num_ranks, work, *args, timeout=timeout, preload=preload)
    if called.failures:
        told = (f"rank {rank} of {num_ranks}: {why}" for rank, why in sorted(called.failures.items()))
        raise WorldError("\n".join(told))
    return [called.results[rank] for rank in range(num_ranks)]
