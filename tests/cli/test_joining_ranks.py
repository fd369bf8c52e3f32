"""Commands that join other ranks, and leftovers of a launcher's variables in the shell."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launcher_variables import SECOND
from messages import says
from patience import wait_for
from tiny import save_folder
from warm import Warm, run

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny-wan", heads=3)


def test_commands_that_join_nobody_speak_whatever_is_left_in_the_shell(tmp_path: Path) -> None:
    """Commands that join no world ignore launchers' variables in the shell, even invalid ones."""
    left = {**ENV, **SECOND, "WORLD_SIZE": "many", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    model = ["--model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
    done = run(["plan", *model, "--gpus", "1xL40"], tmp_path, left)
    assert (done.returncode, done.stderr) == (0, "")
    assert "L40" in done.stdout
    done = run(["decode", "none.safetensors"], tmp_path, left)
    assert done.returncode == 2
    assert re.fullmatch(r"paradit: error: [^\n]*'none\.safetensors'[^\n]*\n", done.stderr)


def test_commands_that_join_others_say_what_to_unset(model: Path, tmp_path: Path) -> None:
    for command in (["generate", "a", "--model", str(model)], ["resume", "none"], ["extend", "none"]):
        done = run(command, tmp_path, {**ENV, **SECOND, "WORLD_SIZE": "1"})
        assert (done.returncode, done.stdout) == (2, "")
        if command[0] != "extend":
            assert re.fullmatch(r"paradit: error: RANK [^\n]*: unset RANK WORLD_[^\n]*\n", done.stderr)
    done = run(["generate", "a", "--model", str(model), "--dry-run"], tmp_path, {**ENV, **SECOND})
    assert "prompt:  a\n" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA does not outlive a fork")
def test_waiting_for_others_says_for_whom_and_can_be_interrupted(model: Path, tmp_path: Path) -> None:
    here, elsewhere = str(free_port()), str(free_port())
    first, second, alone = (
        Warm(
            ["generate", "a", "--model", model],
            tmp_path,
            {**ENV, "RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank, ranks, port in (("0", "3", here), ("1", "3", here), ("1", "2", elsewhere))
    )
    unset = "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT, or start all ranks with torchrun)\n"
    wait_for_words(first, f"rank 0 waits for rank 2 of 3 at 127.0.0.1:{here} .. {unset}")
    wait_for_words(alone, f"rank 1 waits for rank 0 of 2 at 127.0.0.1:{elsewhere} .. {unset}")
    assert "waits for rank 2" not in second.errors_so_far()  # the first rank reports it

    assert ended(alone, signal.SIGTERM) == (143, "paradit: terminated")
    assert ended(first, signal.SIGINT) == (130, "paradit: interrupted")
    code, line = ended(second, None)
    assert code == 1 and line.startswith("rank 0 ")
    assert not list(tmp_path.iterdir())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for_words(process: Warm, words: str) -> None:
    wait_for(lambda: says(process.errors_so_far(), words), process.errors_so_far)


def ended(process: Warm, signum: int | None) -> tuple[int | None, str]:
    """Return the exit code, and the last line on stderr."""
    if signum is not None:
        process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.splitlines()[-1]


SWALLOWED = """
import os, signal, sys
from paradit.cli.signals import Stopped, stopping_cleanly

class Callback:
    def __del__(self):  # Python cannot raise what is raised here
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

def wait():
    try:
        signal.pause()
    finally:
        sys.stdout.write("cleaned up\\n")

def main():
    try:
        with stopping_cleanly():
            Callback()
            wait()
    except Stopped as stopped:
        print(stopped.message)

main()
"""


def test_a_signal_that_a_library_swallows_comes_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("cleaned up\ninterrupted\n", "")
