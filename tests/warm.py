"""Commands that begin with torch and diffusers there already: each is forked from a process that has them.

Those imports are most of what a small run takes. The server that a command forks its ranks from is forked
from the command. What is imported when, and how a command and its ranks begin cold, is for tests/test_cli.py.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import util
from pathlib import Path
from typing import Any

import torch

SERVER = "import sys; sys.path.append(sys.argv[2]); import warm; warm.serve(int(sys.argv[1]))"
COMMAND = "from paradit.cli.main import main; main()"


class Warm:
    """A running `paradit`, to be followed as a `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> None:
        told, telling = os.pipe()
        status, keeping = os.pipe()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with this object)
        asked = {"arguments": [*map(str, arguments)], "folder": str(folder), "env": dict(env)}
        socket.send_fds(_server(), [json.dumps(asked).encode()], [telling, self._errors.fileno(), keeping])
        os.close(telling)
        os.close(keeping)
        self.stdout, self._status = os.fdopen(told), os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def errors_so_far(self) -> str:
        return os.pread(self._errors.fileno(), 2**20, 0).decode()  # a seek would move where it writes

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has just ended, as of a stop after this very step
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What is left of its output, and its errors, once it has ended. Raises TimeoutError."""
        output = self.stdout.read()
        if not select.select([self._status], [], [], timeout)[0]:
            raise TimeoutError(f"the command has not ended within {timeout:g} s")
        self.returncode = int(self._status.readline())
        self._errors.seek(0)
        errors = self._errors.read()
        for file in (self.stdout, self._status, self._errors):
            file.close()
        return output, errors


def run(
    arguments: Sequence[str | Path], folder: Path, env: Mapping[str, str], timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """A whole command, and what it has said."""
    process = start(arguments, folder, env)
    output, errors = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess([*arguments], process.returncode, output, errors)


def start(
    arguments: Sequence[str | Path], folder: Path, env: Mapping[str, str]
) -> Warm | subprocess.Popen[str]:
    """A command, to be followed; cold where there is a GPU, since CUDA does not outlive a fork."""
    if not torch.cuda.is_available():
        return Warm(arguments, folder, env)
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@cache
def _server() -> socket.socket:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started = [
        sys.executable,
        "-c",
        SERVER + "; sys.path.pop(); " + COMMAND,
        str(its.fileno()),
        str(Path(__file__).parent),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(started, env=env, pass_fds=[its.fileno()])
    its.close()
    atexit.register(process.wait)
    atexit.register(mine.close)  # which ends it, and comes first
    return mine


def serve(number: int) -> None:
    """Returns in each command's process only, with its arguments in `sys.argv`."""
    import paradit.engine.rank
    import paradit.models.hunyuan_video.adapter
    import paradit.models.wan.adapter  # noqa: F401

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how the keepers end
    with socket.socket(fileno=number) as asking:
        while True:
            message, fds, *_ = socket.recv_fds(asking, 2**20, 3)
            if not message:
                os._exit(0)
            if os.fork() == 0:
                break
            for fd in fds:
                os.close(fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _keep(*fds)
    asked = json.loads(message)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv[1:] = asked["arguments"]
    util.spawnv_passfds = _forking(util.spawnv_passfds)


def _forking(start: Callable[[bytes, Sequence[str], Sequence[int]], int]) -> Any:
    """Return a `start` of interpreters that forks this process if multiprocessing's fork server is wanted."""

    def forked(path: bytes, arguments: Sequence[str], fds: Sequence[int]) -> int:
        program = arguments[-1]
        if "multiprocessing.forkserver" not in program:
            return start(path, arguments, fds)
        pid = os.fork()
        if pid:
            return pid
        gc.freeze()  # what lies in it belongs to the command, as do the files that are closed here
        for fd in {int(file.name) for file in Path("/proc/self/fd").iterdir()} - {0, 1, 2, *fds}:
            with suppress(OSError):
                os.close(fd)
        try:
            exec(program, {})
        finally:
            os._exit(0)

    return forked


def _keep(output: int, errors: int, status: int) -> None:
    """Fork the command, and tell its id and, once it has ended, its exit code. Returns in the command."""
    pid = os.fork()
    if pid:
        os.close(output)
        os.close(errors)
        os.write(status, f"{pid}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, f"{code}\n".encode())
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for fd in (output, errors, status):
        os.close(fd)
