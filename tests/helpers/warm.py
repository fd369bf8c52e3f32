"""Fast starts of `paradit` commands and of scripts: each is forked from a process with diffusers loaded.

Its imports take most of the time of a small run. The server from which a command forks its ranks is itself
forked from the command. Which modules are imported when, and how a command starts cold, is tested in
tests/cli/test_cli.py; its ranks start cold in tests/cli/test_streams.py.
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
from types import CodeType
from typing import Any

import torch

SERVER = (
    "import sys; sys.path.append(sys.argv[2]); import warm; "
    "program = warm.serve(int(sys.argv[1])); sys.path.pop(); exec(program)"
)
COMMAND = "from paradit.cli.main import main; main()"


class Warm:
    """A running `paradit` command or script, with the interface of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        folder: Path,
        env: Mapping[str, str],
        script: Path | None = None,
    ) -> None:
        """Start the command with these arguments, or a script with them."""
        told, telling = os.pipe()
        status, keeping = os.pipe()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with this object)
        asked = {
            "arguments": [*map(str, arguments)],
            "folder": str(folder),
            "env": dict(env),
            "script": str(script) if script else None,
        }
        server = _server(env.get("PYTHONPATH"))
        socket.send_fds(server, [json.dumps(asked).encode()], [telling, self._errors.fileno(), keeping])
        os.close(telling)
        os.close(keeping)
        self.stdout, self._status = os.fdopen(told), os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def errors_so_far(self) -> str:
        return os.pread(self._errors.fileno(), 2**20, 0).decode()  # a seek would move the writer's position

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it may have just ended by itself
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, *, timeout: float) -> tuple[str, str]:
        """Wait for the end, and return the rest of stdout, and stderr. Raises TimeoutError."""
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
    """Run a command to its end, and return its exit code and output."""
    process = start(arguments, folder, env)
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess([*arguments], process.returncode, output, errors)


def start(
    arguments: Sequence[str | Path], folder: Path, env: Mapping[str, str], script: Path | None = None
) -> Warm | subprocess.Popen[str]:
    """Start a command or a script; cold if there is a GPU, because CUDA does not survive a fork."""
    if not torch.cuda.is_available():
        return Warm(arguments, folder, env, script)
    program = [str(script)] if script else ["-c", COMMAND]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@cache
def _server(path: str | None) -> socket.socket:
    """Return the socket of a server whose interpreter started with this PYTHONPATH."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started = [sys.executable, "-c", SERVER, str(its.fileno()), str(Path(__file__).parent)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": path} if path else {})}
    process = subprocess.Popen(started, env=env, pass_fds=[its.fileno()])
    its.close()
    atexit.register(process.wait)
    atexit.register(mine.close)  # runs before the wait above, and ends the server
    return mine


def serve(number: int) -> CodeType:
    """Fork a process for each program that is requested; returns it only there, with its `sys.argv` set."""
    import paradit.engine.rank
    import paradit.models.hunyuan_video.adapter
    import paradit.models.wan.adapter  # noqa: F401

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the keepers' exit codes are not needed
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
    tempfile.tempdir = None  # it is looked up again, by this environment
    sys.argv[1:] = asked["arguments"]
    util.spawnv_passfds = _forking(util.spawnv_passfds)
    if script := asked["script"]:
        sys.argv[0] = sys.modules["__main__"].__file__ = script
        return compile(Path(script).read_text(), script, "exec")
    return compile(COMMAND, "<string>", "exec")


def _forking(start: Callable[[bytes, Sequence[str], Sequence[int]], int]) -> Any:
    """Wrap `start`, which starts interpreters, so that it forks this process for a fork server.

    This applies to multiprocessing's fork server; other programs are started as before.
    """

    def forked(path: bytes, arguments: Sequence[str], fds: Sequence[int]) -> int:
        program = arguments[-1]
        if "multiprocessing.forkserver" not in program:
            return start(path, arguments, fds)
        pid = os.fork()
        if pid:
            return pid
        gc.freeze()  # objects and files so far belong to the command; the files are closed here
        for fd in {int(file.name) for file in Path("/proc/self/fd").iterdir()} - {0, 1, 2, *fds}:
            with suppress(OSError):
                os.close(fd)
        try:
            exec(program, {})
        finally:
            os._exit(0)

    return forked


def _keep(output: int, errors: int, status: int) -> None:
    """Fork the command, report its process id and, once it has ended, its exit code.

    Returns only in the command.
    """
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
