"""Standard streams that are closed, full, broken or in another encoding, and do not stop the work."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paradit.video.reader import read_video
from tiny import save_folder
from warm import start

COMMAND = [sys.executable, "-c", "from paradit.cli.main import main; main()"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
PLAN = ["plan", "--model", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "--gpus", "1xL40"]
PROMPT = "中文 é 😀"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder("wan21", folder, heads=3, width=48, height=48, num_frames=9, num_inference_steps=2)


def run(
    arguments: list[str], folder: Path, streams: str = "", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a whole command with its streams redirected by the shell; `>&-` closes stdout."""
    return subprocess.run(
        ["bash", "-c", f'"$@" {streams}; exit ${{PIPESTATUS[0]}}', "bash", *COMMAND, *arguments],
        cwd=folder,
        env=ENV | env,
        capture_output=True,
        timeout=120,
        check=False,
    )


def read(told: bytes) -> str:
    """Return the decoded output, after a check that it holds no traceback."""
    text = told.decode()
    assert "Traceback" not in text and "Exception ignored" not in text, text
    return text


def check_made(folder: Path) -> None:
    """Check that the video is complete, and that nothing else is there."""
    assert [path.name for path in folder.iterdir()] == ["中文-é-seed0.mp4"]
    assert read_video(folder / "中文-é-seed0.mp4")[0].shape == (9, 48, 48, 3)


def test_the_video_is_made_with_all_streams_closed(model: Path, tmp_path: Path) -> None:
    done = run(["generate", PROMPT, "--model", str(model), "--ranks", "2"], tmp_path, "<&- >&- 2>&-")
    assert done.returncode == 0
    check_made(tmp_path)


def test_the_video_is_made_after_the_reader_has_gone(model: Path, tmp_path: Path) -> None:
    process = start(["generate", PROMPT, "--model", str(model), "--json"], tmp_path, ENV)
    assert process.stdout is not None
    assert "stage_start" in process.stdout.readline()
    process.stdout.close()
    process.stdout = io.StringIO()
    assert (process.communicate(timeout=120)[1], process.returncode) == ("", 0)
    check_made(tmp_path)


def test_other_encodings(model: Path, tmp_path: Path) -> None:
    dry_run = ["generate", PROMPT, "--model", str(model), "--dry-run"]
    told = json.loads(read(run([*dry_run, "--json"], tmp_path, PYTHONIOENCODING="ascii").stdout))
    assert (told["prompt"], told["path"]) == (PROMPT, "中文-é-seed0.mp4")
    told = run(dry_run, tmp_path, PYTHONIOENCODING="latin-1").stdout.decode("latin-1")
    assert "\\u4e2d\\u6587 é \\U0001f600\n" in told
    assert "\\u4e2d\\u6587-é-seed0.mp4" in told


def test_names_are_those_that_the_system_can_write(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"{PROMPT} red\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["generate", "--prompts-file", "prompts.txt", "--model", str(model), "--dry-run", "--json"]
    told = json.loads(read(run(arguments, tmp_path, **ascii_only).stdout))
    assert (told["prompt"], told["path"]) == (f"{PROMPT} red", "00-red-seed0.mp4")
    # The argument holds a byte that is not valid UTF-8.
    done = run(["generate", "a", "--model", str(model)], tmp_path, "-o $'caf\\xe9.mp4'")
    assert done.returncode == 2
    assert re.fullmatch(r"paradit: error: output 'caf\\udce9\.mp4' .*utf-8.*\n", read(done.stderr))


@pytest.mark.parametrize(
    ("arguments", "streams", "code", "said"),
    [
        (PLAN, ">/dev/full", 1, "paradit: error: .*: No space left on device\n"),
        (PLAN, "| true", 1, ""),
        (PLAN, ">&-", 0, ""),
        (["--help"], "2>&- | head -1", 0, ""),
        (["plan"], "2>/dev/full", 2, ""),
    ],
)
def test_commands_whose_output_is_all_they_make(
    tmp_path: Path, arguments: list[str], streams: str, code: int, said: str
) -> None:
    # The reader of `| true` is gone before any output, because Python takes longer to start.
    done = run(arguments, tmp_path, streams)
    assert done.returncode == code
    assert re.fullmatch(said, read(done.stderr))


def test_a_pipe_that_does_not_block_loses_nothing() -> None:
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETFL, os.O_NONBLOCK)
    says = "from paradit.streams import make_safe; make_safe(); print('x' * 999_999)"
    process = subprocess.Popen([sys.executable, "-c", says], stdout=theirs)
    os.close(theirs)
    time.sleep(0.5)  # the pipe fills up meanwhile
    with os.fdopen(ours) as pipe:
        assert len(pipe.read()) == 1_000_000
    assert process.wait(30) == 0
