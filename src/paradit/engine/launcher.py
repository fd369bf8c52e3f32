"""Starts the processes of a world, carries messages to and from them, and ends them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from paradit.engine.worker import Assignment, work
from paradit.models.registry import family
from paradit.models.spec import ModelSpec

Message = tuple[str, tuple[Any, ...]]
"""An event and its values. A process's last is `done`, `stopped`, `raised` (its traceback), or `ended`
(how), where it has ended without a word."""


class Launcher(Protocol):
    """A way to have processes: on this machine, or on others. Each world has a launcher of its own."""

    def start(self, assignments: list[Assignment]) -> None:
        """A process for each assignment, with a place where they `meet`."""

    def hear(self, timeout: float) -> list[tuple[int, Message]]:
        """What ranks have said, in the order of each; after `timeout` seconds perhaps nothing."""

    def tell(self, rank: int, message: str) -> None:
        """`stop`: end after this step. `stacks`: write to the log where you are."""

    def end(self) -> None:
        """End all that are left, at once, and wait until they are gone. May be called twice."""


class LocalLauncher:
    """Processes on this machine."""

    def __init__(self, preload: list[str], work: Callable[[Any, Connection], None] = work) -> None:
        """preload: modules to be imported once, for all processes, where no GPU forbids it.

        work: the main function of a process, of its assignment and the pipe for its messages.
        """
        self._preload, self._work = preload, work
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._processes: list[BaseProcess] = []
        self._ranks: dict[Connection, int] = {}

    def start(self, assignments: Sequence[Any]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="paradit-")
        meet = Path(self._folder.name) / "store"
        context: Any = _context(self._preload)
        spawned = context.get_start_method() == "spawn"
        for assignment in assignments:
            mine, theirs = context.Pipe()
            self._ranks[mine] = assignment.rank
            process = context.Process(target=self._work, args=(replace(assignment, meet=meet), theirs))
            with _ignoring_ctrl_c() if spawned else nullcontext():
                process.start()
            theirs.close()
            self._processes.append(process)

    def hear(self, timeout: float) -> list[tuple[int, Message]]:
        heard = []
        for pipe in wait(list(self._ranks), timeout):
            assert isinstance(pipe, Connection)
            rank = self._ranks[pipe]
            try:
                message: Message = pipe.recv()
            except (EOFError, OSError):
                message = "ended", (self._how_it_ended(rank),)
            if message[0] in ("done", "stopped", "raised", "ended"):
                del self._ranks[pipe]
            heard.append((rank, message))
        return heard

    def tell(self, rank: int, message: str) -> None:
        for pipe, other in self._ranks.items():
            if other == rank:
                with contextlib.suppress(OSError):  # it has just ended
                    pipe.send(message)

    def end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._ranks:
            pipe.close()
        self._processes, self._ranks = [], {}
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _how_it_ended(self, rank: int) -> str:
        process = self._processes[rank]
        process.join(2.0)
        code = process.exitcode
        return (
            f"ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        )


def preloaded(spec: ModelSpec) -> list[str]:
    """The modules that every rank of a run of this model imports."""
    return ["paradit.engine.make", family(spec.pipeline_class).module]


def _context(preload: list[str]) -> Any:
    import torch

    # A process that was forked cannot use CUDA where the one it comes from has so much as asked for it.
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    with _ignoring_ctrl_c():
        forkserver.ensure_running()
    return context


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """A process started within inherits it, and so is deaf to a terminal's Ctrl-C from its first moment."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
