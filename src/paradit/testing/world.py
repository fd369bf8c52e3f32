"""Start a world of gloo processes for one piece of work, and report what every rank says.

A fork server with torch preloaded makes a world in about a tenth of a second, so each piece of work gets a
world of its own: nothing is left over from a failure.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from paradit.distributed.world import join_world

T = TypeVar("T")

GRACE_SECONDS = 2.0
"""How long after the first failure the other ranks may still say what happened to them."""


class WorldError(RuntimeError):
    """Some rank failed, or did not end in time; the message has every rank's own words."""


def run_world(work: Callable[..., T], num_ranks: int, *args: Any, timeout: float = 60.0) -> list[T]:
    """`work(world, *args)` on `num_ranks` gloo processes, one thread each: the results, by rank.

    `work` is a function of a module, so that it can be pickled, as can `args` and the results. It asserts
    what it knows. Raises `WorldError` with each failed rank's traceback or signal; on a time-out with every
    rank's stack.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["paradit.testing.preload"])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _Rank(context, rank, num_ranks, Path(folder), (work, args, timeout)) for rank in range(num_ranks)
        ]
        try:
            _wait_for(ranks, timeout)
        finally:
            for rank in ranks:
                rank.kill()
        failed = [rank for rank in ranks if rank.failure is not None]
        if failed:
            raise WorldError(
                "\n".join(f"rank {rank.number} of {num_ranks}: {rank.failure}" for rank in failed)
            )
        return [rank.result for rank in ranks]


class _Rank:
    """One process, as the parent sees it."""

    def __init__(self, context: Any, number: int, size: int, folder: Path, job: tuple[Any, ...]) -> None:
        self.number, self.result, self.failure = number, None, None  # type: tuple[int, Any, str | None]
        self.stacks = _stacks(folder, number)
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_run_rank, args=(number, size, folder, theirs, job), daemon=True
        )
        self.process.start()
        theirs.close()
        self.ended = False

    def collect(self) -> None:
        """Take what the process has said; it has ended, or is about to."""
        self.ended = True
        try:
            done, content = pickle.loads(self.pipe.recv_bytes())
        except EOFError:
            self.process.join(GRACE_SECONDS)
            code = self.process.exitcode
            cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            self.failure = f"the process died: {cause}"
            return
        self.result, self.failure = (content, None) if done else (None, content)

    def dump_stack(self) -> None:
        """Have the process write where it is; it is then killed."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGUSR1)

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _wait_for(ranks: list[_Rank], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while running := [rank for rank in ranks if not rank.ended]:
        left = deadline - time.monotonic()
        ready = wait([rank.pipe for rank in running], max(left, 0))
        for rank in running:
            if rank.pipe in ready:
                rank.collect()
                if rank.failure is not None:  # the others will wait in vain: hear them soon, or never
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if not ready:
            _give_up(running, others_failed=any(rank.failure is not None for rank in ranks), timeout=timeout)
            return


def _give_up(running: list[_Rank], others_failed: bool, timeout: float) -> None:
    why = (
        "was still running when another rank failed" if others_failed else f"did not end within {timeout:g} s"
    )
    for rank in running:
        rank.dump_stack()
    time.sleep(0.2)
    for rank in running:
        stack = rank.stacks.read_text() if rank.stacks.exists() else ""
        rank.failure = f"{why}\n{stack}"


def _stacks(folder: Path, number: int) -> Path:
    return folder / f"stacks-{number}"


def _run_rank(number: int, size: int, folder: Path, pipe: Connection, job: tuple[Any, ...]) -> None:
    work, args, timeout = job
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # looking the host's name up is slow, and fails on some machines
    with _stacks(folder, number).open("w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        try:
            with join_world(number, size, folder / "store", timeout=timeout) as world:
                result = work(world, *args)
            message = pickle.dumps((True, result))
        except BaseException:
            message = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(message)
        pipe.close()
