"""The training command for a few steps: it makes a model that loads, and resumes after a stop."""

import os
import subprocess
import sys
from pathlib import Path

from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paths import ROOT


def train(folder: Path, *options: str) -> str:
    command = [
        sys.executable,
        str(ROOT / "training/shapes/train.py"),
        "--folder",
        str(folder),
        "--batch",
        "1",
    ]
    done = subprocess.run(
        [*command, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trains_and_goes_on(tmp_path: Path) -> None:
    minutes = ["--vae-minutes", "0.02", "--decoder-minutes", "0.02", "--transformer-minutes"]
    assert "going on" not in train(tmp_path, *minutes, "0.02")
    spec = read_spec(find_model(str(tmp_path / "transformer" / "pipeline")))
    assert (spec.name, spec.tokens(33, 96, 96)) == ("shapes", 324)
    assert train(tmp_path, *minutes, "0.04").count("going on from step") == 3
