"""The training command for a few steps: it makes a model that loads, and resumes after a stop."""

import os
from pathlib import Path

import warm
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paths import ROOT

BRIEFLY = f"""
import sys
sys.path.insert(0, {str(ROOT / "training/shapes")!r})
import train, vae
clips = vae.clips
vae.clips = lambda rng, count, frames, crop=None: clips(rng, min(count, 2), min(frames, 9), crop)
train.main()
"""
"""Script that runs the command with few and short clips, also where it measures the VAE."""


def train(folder: Path, *options: str) -> str:
    script = folder / "briefly.py"
    script.write_text(BRIEFLY)
    arguments = ["--folder", str(folder), "--batch", "1", *options]
    process = warm.start(arguments, folder, os.environ | {"OMP_NUM_THREADS": "1"}, script)
    told, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return told


def test_trains_and_goes_on(tmp_path: Path) -> None:
    minutes = ["--vae-minutes", "0.02", "--decoder-minutes", "0.02", "--transformer-minutes"]
    assert "going on" not in train(tmp_path, *minutes, "0.02")
    spec = read_spec(find_model(str(tmp_path / "transformer" / "pipeline")))
    assert (spec.name, spec.tokens(33, 96, 96)) == ("shapes", 324)
    assert train(tmp_path, *minutes, "0.04").count("going on from step") == 3
