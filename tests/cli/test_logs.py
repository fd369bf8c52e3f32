"""Log records: none by default, by rank with `--verbose`, and passed to a program's own `logging`."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import paradit
from paradit import Engine, Placement, Request
from paradit.cli.main import app
from tiny import save_folder

COMMAND = [sys.executable, "-m", "paradit"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (?:rank (\d) )?paradit\.([\w.]+): .+")
SECRET = "a circle nobody shall read of"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"width": 48, "height": 48, "num_frames": 9, "num_inference_steps": 2, "fps": 8}
    return save_folder("wan21", tmp_path_factory.mktemp("models") / "tiny-wan", heads=2, **sizes)


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [*COMMAND, *map(str, arguments)]
    return subprocess.run(line, cwd=folder, env=ENV, capture_output=True, text=True, timeout=300, check=True)


def modules(errors: str) -> set[tuple[str | None, str]]:
    """Return the rank and module of every log record."""
    return {found.groups() for line in errors.splitlines() if (found := LINE.fullmatch(line))}  # type: ignore[misc]


def test_a_verbose_run_says_what_it_decides(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["generate", SECRET, "--model", str(model), "-o", str(tmp_path / "a.mp4"), "--json"]
    app([*plain, "--checkpoint-steps", "1", "--verbose"], standalone_mode=False)
    said = capsys.readouterr()
    assert all(json.loads(line)["event"] for line in said.out.splitlines())
    wanted = {"models.folder", "engine.run_folder", "engine.run", "engine.checkpoints", "progress"}
    assert wanted <= {module for rank, module in modules(said.err) if rank is None}
    assert SECRET not in said.err
    app([*plain, "--overwrite"], standalone_mode=False)
    assert capsys.readouterr().err == ""


def test_records_of_ranks_come_with_their_numbers(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = ["--ranks", "2", "--attention", "ulysses", "--json", "--verbose"]
    made = ["generate", SECRET, "--model", str(model), "-o", str(tmp_path / "a.mp4"), *placed]
    app(made, standalone_mode=False)
    said = capsys.readouterr()
    assert all(json.loads(line)["event"] for line in said.out.splitlines())
    found = modules(said.err)
    assert {(None, "engine.launchers.local"), ("0", "progress"), ("1", "progress")} <= found
    assert SECRET not in said.err


@pytest.mark.parametrize("arguments", [["plan", "--model", "shapes", "--gpus", "2xL40"], ["runs"]])
def test_other_commands_are_verbose_too(tmp_path: Path, arguments: list[str]) -> None:
    assert modules(run(tmp_path, *arguments, "--verbose").stderr)
    assert not run(tmp_path, *arguments).stderr


def test_a_program_hears_its_ranks(tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "paradit"), Engine(model, Placement(ranks=2)) as engine:
        engine.submit(Request(prompt="p"), tmp_path / "a.mp4").result(300)
    heard = {(getattr(record, "rank", None), record.name) for record in caplog.records}
    assert {(None, "paradit.engine.engine"), (0, "paradit.progress"), (1, "paradit.progress")} <= heard
    assert logging.getLogger(paradit.__name__).level == logging.NOTSET


def test_a_program_hears_nothing_unasked(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    paradit.generate("p", model=model).save(tmp_path / "a.mp4")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("paradit")]
