"""Real `paradit` commands whose events are followed, and whose ranks can be killed."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from warm import start

COMMAND = [sys.executable, "-c", "from paradit.cli.main import main; main()"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
LIMIT = 120.0
"""Seconds after which a command counts as hanging."""


class Command:
    """A running `paradit` command with `--json`; `told` holds the events it has reported so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.process = start([*arguments, "--json"], folder, ENV)
        self.told: list[dict[str, Any]] = []
        self.began = time.monotonic()

    def until(self, found: Callable[[dict[str, Any]], bool]) -> bool:
        """Read events until one satisfies `found`; return False if the command ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(json.loads(line))
            assert time.monotonic() - self.began < LIMIT, "the command hangs"
            if found(self.told[-1]):
                return True
        return False

    def until_event(self, event: str, **fields: Any) -> None:
        """Read events until one has these fields; fails if none comes."""
        wanted = {"event": event, **fields}
        assert self.until(lambda told: wanted.items() <= told.items()), self.end()

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks, by rank."""
        return sorted(_ranks(self.process.pid), key=lambda process: process.pid)

    def end(self) -> tuple[int, str]:
        """Read events to the end; return the exit code and stderr, and check that no process is left."""
        processes = _family(self.process.pid)
        assert not self.until(lambda _: False)
        _, errors = self.process.communicate(timeout=LIMIT)
        wait_until_gone(processes)
        assert self.process.returncode is not None
        return self.process.returncode, errors

    def end_well(self) -> None:
        """Read events to the end, and check that the command succeeded."""
        code, errors = self.end()
        told = [about for about in self.told if about["event"] not in ("step", "stage_start", "stage_end")]
        assert code == 0, f"{errors}\n{told}"

    def kill(self) -> None:
        """Kill the command alone, by SIGKILL, and check that its ranks end by themselves."""
        processes = _family(self.process.pid)
        self.process.kill()
        self.until(lambda _: False)  # reads the events that it had reported
        self.process.communicate(timeout=LIMIT)
        wait_until_gone(processes)


def finished(folder: Path, *arguments: str) -> Command:
    """Run a command to its successful end, and return it."""
    command = Command(folder, *arguments)
    command.end_well()
    return command


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the events of one name."""
    return [event for event in events if event["event"] == name]


def run_folder(folder: Path) -> Path:
    """Return the folder of the only run that can be resumed."""
    (found,) = (folder / "paradit-runs").iterdir()
    return found


def wait_until_gone(processes: list[psutil.Process], seconds: float = 10.0) -> None:
    """Check that all processes end within `seconds`."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    assert not left, f"left behind: {left}"


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _ranks(pid: int) -> list[psutil.Process]:
    """Return the ranks' processes: children of the fork server, which is a child of the command."""
    return [process for process in _family(pid) if _is_rank(process, pid)]


def _is_rank(process: psutil.Process, command: int) -> bool:
    try:
        started = process.cmdline()
        forked = started == psutil.Process(command).cmdline()  # as warm.py starts ranks
        served = re.search("forkserver|spawn_main", " ".join(started)) is not None
        return process.ppid() != command and (forked or served)
    except psutil.NoSuchProcess:  # it has just ended, such as a helper program that a library runs
        return False
