"""`paradit runs`, which lists the runs that exist and removes runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.engine.job import Job, Run
from paradit.engine.run_folder import RunFolder
from paradit.models.folder import bundled_folder
from paradit.models.spec import read_spec


def paradit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "paradit", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def listed(cwd: Path, *arguments: str) -> dict[str, dict[str, object]]:
    done = paradit("runs", *arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return {Path(line["run"]).name: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    spec = read_spec(bundled_folder())
    asked = {p: resolve(Request(prompt=p), spec) for p in "ab"}
    jobs = [Job(request=asked[p], output=str(tmp_path / f"{p}.mp4"), latents=None) for p in "ab"]
    return RunFolder.create(Run(model="shapes", jobs=tuple(jobs), placement=Placement()))


def test_states_and_sizes(run: RunFolder, tmp_path: Path) -> None:
    name, (first, second) = run.path.name, run.read().jobs
    (run.path / "00000.block-0000.pt").write_bytes(b"x" * 50_000)
    run.finish(first)
    found = listed(tmp_path)[name]
    size = sum(path.stat().st_size for path in run.path.iterdir())
    assert (found["state"], found["videos"], found["videos_done"]) == ("unfinished", 2, 1)
    assert found["size_bytes"] == size > 50_000
    with run.locked():
        assert listed(tmp_path)[name]["state"] == "running"
        refused = paradit("runs", "--remove", name, cwd=tmp_path)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    run.finish(second)
    assert listed(tmp_path, str(run.path.parent))[name]["state"] == "done"
    run.open_state(1).write_bytes(b"x")
    assert listed(tmp_path)[name]["state"] == "extendable"
    (run.path / "run.json").write_text("{")
    assert listed(tmp_path)[name]["state"] == "damaged"
    assert paradit("runs", cwd=tmp_path).stdout.startswith("run ")


def test_removed(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder.create(run.read())
    missing = paradit("runs", "--remove", run.path.name, "--remove", "nothing", cwd=tmp_path)
    assert (missing.returncode, run.path.exists()) == (2, True)
    done = paradit("runs", "--remove", run.path.name, cwd=tmp_path)
    assert done.returncode == 0
    assert set(listed(tmp_path)) == {other.path.name}
    assert paradit("runs", "--remove", os.path.relpath(other.path, tmp_path), cwd=tmp_path).returncode == 0
    assert not other.path.parent.exists()
    assert paradit("runs", cwd=tmp_path).stdout == "no runs in 'paradit-runs'\n"
    assert paradit("runs", "nowhere", cwd=tmp_path).returncode == 2
