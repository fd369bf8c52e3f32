"""Launchers' variables, and leftovers of them in the shell; and ranks that wait for each other."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from paradit.config.errors import InputError
from paradit.launcher_environment import Launched, check_meeting_point, is_spoken_for, launched
from tiny import save_folder
from warm import Warm, run

MEET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SECOND = {"RANK": "1", "WORLD_SIZE": "2", **MEET}
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_what_is_no_launcher() -> None:
    assert launched({}) is None
    assert launched({"RANK": "", "WORLD_SIZE": " "}) is None
    assert launched({**MEET, "LOCAL_RANK": "x", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}) is None


def test_what_a_launcher_says() -> None:
    here = launched(SECOND)
    assert here == Launched(
        rank=1,
        ranks=2,
        local_rank=1,
        local_ranks=None,
        address="127.0.0.1",
        port=29500,
        by_torchrun=False,
        agent_store=False,
        attempt="",
        unset="unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT, or start all ranks with torchrun",
    )
    assert not is_spoken_for(SECOND)
    torchrun = {**SECOND, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "::1"}
    torchrun["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    here = launched(torchrun)
    assert here is not None
    assert (here.local_rank, here.local_ranks, here.by_torchrun, here.agent_store) == (1, 4, True, True)
    assert here.meeting_point == "[::1]:29500"
    assert is_spoken_for(torchrun)
    assert not is_spoken_for({**torchrun, "RANK": "0"})


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"RANK": "1"}, "RANK is set, and WORLD_SIZE, MASTER_ADDR and MASTER_PORT are not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, and RANK, MASTER_ADDR and MASTER_PORT are not"),
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK and WORLD_SIZE are set, and MASTER_ADDR and MASTER_PORT",
        ),
        ({**SECOND, "RANK": "2"}, r"RANK must be a whole number from 0 to 1 \(WORLD_SIZE is 2\), got '2'"),
        ({**SECOND, "RANK": "abc"}, "RANK must be .*, got 'abc'"),
        ({**SECOND, "RANK": "-1"}, "RANK must be .*, got '-1'"),
        ({**SECOND, "RANK": "9" * 5000}, "RANK must be .*, got '9{59}\\.\\.\\.: "),
        ({**SECOND, "WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number from 1 to 128, got '0'"),
        ({**SECOND, "MASTER_PORT": "abc"}, "MASTER_PORT must be a whole number from 1 to 65535, got 'abc'"),
        ({**SECOND, "MASTER_PORT": "99999999"}, "MASTER_PORT must be .*, got '99999999'"),
        ({**SECOND, "LOCAL_RANK": "2"}, r"LOCAL_RANK must be .* from 0 to 1 \(2 ranks are on .*, got '2'"),
        ({**SECOND, "LOCAL_WORLD_SIZE": "3"}, r"LOCAL_WORLD_SIZE must be .* from 1 to 2 \(.*, got '3'"),
    ],
)
def test_what_a_launcher_does_not_say(said: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=rf"^{complaint}.*unset [A-Z_ ]*, or start all ranks with torchrun$"):
        launched(said)


def test_places_where_ranks_cannot_meet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(InputError, match=rf"^MASTER_PORT {port} is in use by another program, .*: unset"):
            check_meeting_point(place(RANK="0", MASTER_PORT=port))
        check_meeting_point(place(RANK="1", MASTER_PORT=port))  # the first rank may be what listens there
    for name in ("no-such-host.invalid", "a..b"):
        with pytest.raises(InputError, match=rf"^MASTER_ADDR '{name}' cannot be found \(.*\): unset "):
            check_meeting_point(place(MASTER_ADDR=name))


def place(**said: str) -> Launched:
    here = launched({**SECOND, **said})
    assert here is not None
    return here


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
    assert re.fullmatch(r"paradit: error: latents 'none\.safetensors' [^\n]*\n", done.stderr)


def test_commands_that_join_others_say_what_to_unset(model: Path, tmp_path: Path) -> None:
    for command in (["generate", "a", "--model", str(model)], ["resume", "none"], ["extend", "none"]):
        done = run(command, tmp_path, {**ENV, **SECOND, "WORLD_SIZE": "1"})
        assert (done.returncode, done.stdout) == (2, "")
        if command[0] != "extend":
            assert re.fullmatch(
                r"paradit: error: RANK must be [^\n]*: unset RANK WORLD_[^\n]*\n", done.stderr
            )
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
    unset = "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT, or start all ranks with torchrun"
    wait_for(first, f"rank 0 waits for rank 2 of 3 at 127.0.0.1:{here} (if none is to come: {unset})\n")
    nothing = f"127.0.0.1:{elsewhere}: nothing answers there"
    wait_for(alone, f"rank 1 waits for rank 0 of 2 at {nothing} (if none is to come: {unset})\n")
    assert "waits for rank 2" not in second.errors_so_far()  # the first rank reports it

    assert ended(alone, signal.SIGTERM) == (143, "paradit: terminated")
    assert ended(first, signal.SIGINT) == (130, "paradit: interrupted")
    assert ended(second, None) == (1, "rank 0: it has ended while others were still joining")
    assert not list(tmp_path.iterdir())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for(process: Warm, words: str) -> None:
    deadline = time.monotonic() + 60
    while words not in process.errors_so_far():
        assert time.monotonic() < deadline, process.errors_so_far()
        time.sleep(0.1)


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
