"""The launcher `local`, which starts processes on this machine."""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from paradit.devices import device_of, num_gpus
from paradit.engine.launchers import Capabilities, Machine, Seat, Work, num_cores, threads_per_rank

_LOG = logging.getLogger(__name__)
_STARTING = threading.Lock()
"""Lock held while processes are started, because that changes signals and the main module of this process."""


class LocalLauncher:
    """Launcher that starts ranks on this machine by a fork server, or as new interpreters if it has GPUs."""

    capabilities = Capabilities(replaces=True, shared_folder=True)

    def __init__(
        self,
        *,
        threads: int | None = None,
        device: str | None = None,
        environ: Mapping[str, str] | None = None,
        with_main: bool = False,
    ) -> None:
        """Prepare to start ranks; `start` starts them.

        threads: CPU threads of each rank; None: its share of the cores. device: device of every rank; None: a
        GPU each, if there are any. environ: additional environment variables of the ranks. with_main: whether
        ranks also import this program's main module; they must if the function that they run is defined
        there.
        """
        self._threads, self._device, self._environ = threads, device, dict(environ or {})
        self._with_main = with_main
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._processes: list[BaseProcess] = []
        self._logs: dict[int, Connection] = {}

    def machines(self) -> list[Machine]:
        return [Machine(name="localhost", cores=num_cores(), gpus=num_gpus())]

    def start(
        self, ranks: int, work: Work, *, address: str, token: str, preload: Sequence[str]
    ) -> list[Seat]:
        self._folder = tempfile.TemporaryDirectory(prefix="paradit-")
        seats = [
            Seat(
                rank=rank,
                ranks=ranks,
                machine="localhost",
                local_rank=rank,
                local_ranks=ranks,
                threads=self._threads or threads_per_rank(ranks),
                device=self._device or str(device_of(rank)),
                meet=Path(self._folder.name) / "store",
                address=address,
                token=token,
            )
            for rank in range(ranks)
        ]
        with _STARTING, _deaf_to_ctrl_c():
            context = _context(list(preload))
            with _without_main(self._with_main):
                for seat in seats:
                    mine, theirs = context.Pipe(duplex=False)
                    process = context.Process(
                        target=_main, args=(work, seat, theirs, self._environ), daemon=True
                    )
                    process.start()
                    theirs.close()  # the rank's alone, so that the pipe ends with the rank
                    os.set_blocking(mine.fileno(), False)  # `said` takes what there is and never waits
                    self._logs[seat.rank] = mine
                    self._processes.append(process)
                    _LOG.info("process %s: %r", process.pid, seat)
        return seats

    def ended(self) -> dict[int, str]:
        codes = {rank: process.exitcode for rank, process in enumerate(self._processes)}
        return {rank: _how(code) for rank, code in codes.items() if code is not None}

    def said(self) -> dict[int, str]:
        found = {}
        for rank, pipe in self._logs.items():
            content = b""
            try:
                while part := os.read(pipe.fileno(), 2**16):
                    content += part
            except OSError:  # nothing more to read for now
                pass
            if content:
                found[rank] = content.decode(errors="replace")
        return found

    def end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._logs.values():
            pipe.close()
        self._processes, self._logs = [], {}
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _main(work: Work, seat: Seat, log: Connection, environ: Mapping[str, str]) -> None:
    """Run `work` in a new process; its output goes through a pipe to the process that started it."""
    # Ctrl-C reaches every process of a terminal; only the one that started this one acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in (1, 2):  # stdout and stderr, also those of libraries in C
        os.dup2(log.fileno(), number)
    log.close()
    os.environ.update(environ)
    faulthandler.enable()  # a crash leaves its stack in the log
    torch.set_num_threads(seat.threads)
    work(seat)


def _how(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _context(
    preload: list[str],
) -> multiprocessing.context.SpawnContext | multiprocessing.context.ForkServerContext:
    # A forked process cannot use CUDA if its parent has so much as queried it.
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    forkserver.ensure_running()  # here, where the caller blocks Ctrl-C: the server and its ranks inherit that
    return context


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Block Ctrl-C while the `with` block runs, so that processes started there ignore it from the first."""
    resource_tracker.ensure_running()  # started first, since that unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main(with_main: bool) -> Iterator[None]:
    """Hide this program's main module while the `with` block runs, unless `with_main` is true.

    Processes that are started meanwhile then do not import the main module. Otherwise each of them would run
    a script again that has no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    if not with_main:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
