"""Failures without loss: killed and stopped ranks, killed commands, cancelling, full disks, NaN latents.

`PARADIT_KILLS=40 pytest tests/cli/test_faults.py -k random` reproduces the first row of the table in
docs/results/failures.md.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from made_videos import video_in
from messages import says
from paradit.sampling.solver_state import SolverState
from runs import Command, finished, run_folder
from tiny import drawing_scheduler, save_folder

PROMPTS = ["a red circle", "a blue square", "a green ring", "a white triangle"]
APART = ["--placement", "denoise=0-1 decode=2 encode=3"]
STAGE_OF = {"denoise": 1, "decode": 2, "encode": 3}
STEPS = 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    sizes = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": STEPS}
    return save_folder("wan21", folder, heads=3, scheduler=drawing_scheduler(), **sizes)


def arguments(model: Path, *options: str) -> list[str]:
    return [
        *("generate", "--prompts-file", "prompts.txt", "--model", str(model), "-o", "v.mp4"),
        *("--latents", "l.safetensors", "--checkpoint-steps", "4", *options),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the videos of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    finished(folder, *arguments(model))
    return folder


def same_videos(folder: Path, whole: Path, numbers: list[int] | None = None) -> None:
    """Check that a folder has the same videos, bit for bit, and nothing else."""
    numbers = numbers if numbers is not None else list(range(len(PROMPTS)))
    for number in numbers:
        (latents, frames), (expected, pixels) = (video_in(where, number) for where in (folder, whole))
        torch.testing.assert_close(latents, expected, rtol=0, atol=0)
        assert (frames == pixels).all()
    left = {path.name for path in folder.iterdir()}
    made = {f"v-{number:02d}.mp4" for number in numbers} | {
        f"l-{number:02d}.safetensors" for number in numbers
    }
    assert left - made <= {"prompts.txt"}, left


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_a_killed_rank_is_replaced(model: Path, folder: Path, whole: Path, stage: str) -> None:
    command = Command(folder, *arguments(model, *APART))
    command.until_event("step", stage="denoise", done=6)
    command.ranks()[STAGE_OF[stage]].kill()
    command.until_event("restarted")
    assert f"rank {STAGE_OF[stage]} (" in command.told[-1]["message"]
    assert "ended by SIGKILL" in command.told[-1]["message"]  # seen at once, not missed for the hang limit
    command.end_well()
    same_videos(folder, whole)


def test_a_killed_command_goes_on(model: Path, folder: Path, whole: Path) -> None:
    """The command resumes from its last checkpoint, and repeats at most that checkpoint's interval."""
    for options in (APART, []):
        command = Command(folder, *arguments(model, *options))
        command.until_event("request", index=1)
        command.until_event("step", stage="denoise", done=10)
        command.kill()
        resumed = finished(folder, "resume")
        steps = [
            told["done"] for told in resumed.told if told["event"] == "step" and told["stage"] == "denoise"
        ]
        assert steps[0] >= 8
        same_videos(folder, whole)
        shutil.rmtree(folder / "paradit-runs", ignore_errors=True)
        for number in range(len(PROMPTS)):
            (folder / f"v-{number:02d}.mp4").unlink()
            (folder / f"l-{number:02d}.safetensors").unlink()


def test_a_stopped_rank_is_replaced(model: Path, folder: Path, whole: Path) -> None:
    command = Command(folder, *arguments(model, *APART, "--hang-limit", "8"))
    command.until_event("step", stage="denoise", done=6)
    command.ranks()[1].send_signal(signal.SIGSTOP)
    command.until_event("restarted")
    message = command.told[-1]["message"]
    assert says(message, "rank 1 (denoise of request 1) .. 8 s"), message
    command.end_well()
    same_videos(folder, whole)


def test_three_failures_fail_a_request_alone(model: Path, folder: Path, whole: Path) -> None:
    command = Command(folder, *arguments(model, *APART))
    for _ in range(3):
        command.until_event("request", index=1)
        first, *_ = command.ranks()  # finding them takes about as long as denoising
        command.until_event("stage_start", stage="denoise")
        first.kill()
    code, errors = command.end()
    assert code == 1, errors
    (failed,) = [told for told in command.told if told["event"] == "failed"]
    assert failed["index"] in (0, 1)  # the second request may be encoded while the first is denoised
    assert "given up after 3 failures" in failed["message"]
    assert sum(told["event"] == "result" for told in command.told) == 3
    finished(folder, "resume")
    same_videos(folder, whole)


@pytest.mark.parametrize(
    ("stage", "ranks"),
    [
        *[("load", "apart"), ("encode", "alone"), ("encode", "apart"), ("denoise", "alone")],
        *[("denoise", "together"), ("denoise", "apart"), ("decode", "alone"), ("decode", "apart")],
    ],
)
def test_cancelling(model: Path, folder: Path, whole: Path, stage: str, ranks: str) -> None:
    options = {"alone": [], "together": ["--ranks", "2"], "apart": APART}[ranks]
    command = Command(folder, *arguments(model, *options))
    command.until_event("stage_start", stage=stage)
    command.process.send_signal(signal.SIGINT)
    code, errors = command.end()
    assert (code, errors.splitlines()[-1]) == (130, "paradit: interrupted")
    assert not list(folder.glob(".*")), "a part is left"
    if (folder / "paradit-runs").exists():
        assert {"event": "resumable", "run_dir": str(run_folder(folder))} in command.told
        finished(folder, "resume")
    else:  # nothing was written yet
        assert stage != "decode"
        assert not any(told["event"] == "step" and told["stage"] == "denoise" for told in command.told)
        finished(folder, *arguments(model, *options))
    same_videos(folder, whole)


def test_the_second_ctrl_c_ends_at_once(model: Path, folder: Path) -> None:
    # Steps of some seconds.
    command = Command(folder, *arguments(model, "--size", "512x512", "--num-frames", "49"))
    command.until_event("step", stage="denoise", done=1)
    command.process.send_signal(signal.SIGINT)
    time.sleep(0.7)  # long enough not to count as the same signal, passed on
    command.process.send_signal(signal.SIGINT)
    code, errors = command.end()
    assert code == 130
    assert errors.splitlines()[-1] == "paradit: interrupted"
    assert sum(told["event"] == "step" and told["stage"] == "denoise" for told in command.told) == 1


def test_latents_that_are_poisoned(model: Path, folder: Path, whole: Path) -> None:
    """Requests with NaN latents fail alone: in a checkpoint, with the step, and to be decoded."""
    command = Command(folder, *arguments(model, *APART))
    command.until_event("request", index=2)
    command.until(lambda told: told["event"] == "step" and told["stage"] == "denoise" and told["done"] == 9)
    command.kill()
    (checkpoint,) = run_folder(folder).glob("*.step.pt")
    kept = SolverState.from_bytes(checkpoint.read_bytes())
    kept.latents[0, 0, 0, 0, 0] = torch.nan
    checkpoint.write_bytes(kept.to_bytes())
    save_file({"latents": kept.latents}, run_folder(folder) / "00003.safetensors")
    resumed = Command(folder, "resume")
    assert resumed.end()[0] == 1
    failed = {told["index"]: told["message"] for told in resumed.told if told["event"] == "failed"}
    assert "the saved latents are not finite" in failed.pop(3)
    (index, message), *more = failed.items()
    assert not more and f"the latents are not finite after step {kept.step + 1}" in message
    steps = [(told["done"], told["resumed"]) for told in resumed.told if told["event"] == "step"]
    assert (kept.step, kept.step) in steps
    sound = [number for number in range(len(PROMPTS)) if number not in (index, 3)]
    shutil.rmtree(folder / "paradit-runs", ignore_errors=True)
    same_videos(folder, whole, sound)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 2 MiB, for a test to fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.getuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(model: Path, small_disk: Path, whole: Path) -> None:
    """Requests whose video does not fit fail alone, and are made once there is space."""
    (small_disk / "prompts.txt").write_text("\n".join(PROMPTS))
    filler = small_disk / "filler"
    command = Command(small_disk, *arguments(model, *APART))
    command.until_event("result")
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"0" * 4096):
            pass
    code, errors = command.end()
    assert code == 1, errors
    failed = [told for told in command.told if told["event"] == "failed"]
    assert failed, command.told
    assert all("No space left on device" in told["message"] for told in failed)
    filler.unlink()
    if (small_disk / "paradit-runs").exists():
        finished(small_disk, "resume")
        same_videos(small_disk, whole)


def test_random_kills(model: Path, tmp_path: Path, whole: Path) -> None:
    """Ranks of all stages, and the whole command, are killed at random moments, in one run after another."""
    number = int(os.environ.get("PARADIT_KILLS", "4"))
    killed: Counter[str] = Counter()
    chance = random.Random(number)
    while killed.total() < number:
        folder = tmp_path / str(killed.total())
        folder.mkdir()
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        command = Command(folder, *arguments(model, *APART))
        for kind in chance.sample(["encode", "denoise", "decode", "command"], 4):
            if killed.total() == number or not command.until(lambda told: told["event"] == "stage_start"):
                break
            time.sleep(chance.uniform(0, 1.5))
            ranks = command.ranks()
            if kind == "command":
                command.kill()
                if not (folder / "paradit-runs").exists():
                    break  # it had ended already
                command = Command(folder, "resume")
            elif len(ranks) == 4:  # otherwise the ranks are just starting or ending
                chance.choice(ranks[:2] if kind == "denoise" else [ranks[STAGE_OF[kind]]]).kill()
            else:
                continue
            killed[kind] += 1
        if (folder / "paradit-runs").exists() and command.end()[0]:
            finished(folder, "resume")  # three of them have hit the same request
        same_videos(folder, whole)
    print(dict(killed))
