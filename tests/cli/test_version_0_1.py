"""Files left by version 0.1, which this version must read and continue to the same bits.

tests/data/0.1 was made by 0.1 itself: `paradit generate`, interrupted and to its end, `paradit calibrate` and
`Placement.to_json`. full.safetensors and long.safetensors are results of its own uninterrupted runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from made_videos import latents_in
from messages import says
from paradit.config.methods.blocks import BlocksRequest
from paradit.config.placement import Placement
from paradit.config.placement_text import read_placement
from paradit.engine.run_folder import VERSION, RunFolder
from paradit.planner.hardware import find_cluster
from runs import ENV, finished
from version_0_1 import FILES, run_of

FULL = ("--num-frames", "9", "--num-inference-steps", "8", "--seed", "3")


def same(made: Path, by_before: Path, folder: Path) -> None:
    """Compare latents with those of 0.1, bit for bit if this processor reproduces the stored bits."""
    ours, theirs = load_file(made)["latents"], load_file(by_before)["latents"]
    assert (ours - theirs).abs().max() < 1e-5
    finished(folder, "generate", "a red circle moving right", "--size", "32x32", "--latents", "n.safetensors",
             "-o", "n.mp4", *FULL)  # fmt: skip
    if torch.equal(latents_in(folder, "n"), latents_in(FILES, "full")):
        assert torch.equal(ours, theirs)


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    run = run_of("full", tmp_path)
    told = finished(tmp_path, "resume", str(run)).told
    steps = [about["done"] for about in told if about["event"] == "step" and about["stage"] == "denoise"]
    assert min(steps) == 4, "it began anew"
    same(tmp_path / "l.safetensors", FILES / "full.safetensors", tmp_path)


def test_a_long_video_is_extended(tmp_path: Path) -> None:
    run = run_of("long", tmp_path)
    finished(tmp_path, "extend", str(run), "--num-frames", "16")
    same(tmp_path / "l.safetensors", FILES / "long.safetensors", tmp_path)
    assert json.loads((run / "run.json").read_text())["version"] == VERSION


def test_a_run_of_a_later_version_is_refused(tmp_path: Path) -> None:
    run = run_of("full", tmp_path) / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"version": VERSION + 1}))
    done = subprocess.run(
        [sys.executable, "-m", "paradit", "resume", str(run.parent)],
        capture_output=True, text=True, cwd=tmp_path, env=ENV, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert says(done.stderr, f"version is {VERSION + 1} .. up to {VERSION}")


def test_files_of_a_machine_and_of_a_placement() -> None:
    cluster = find_cluster(str(FILES / "machine.toml"))
    assert (cluster.ranks, cluster.device.dense["fp32"], cluster.link.bandwidth) == (2, 5.54251e10, 6.55105e8)
    wanted = Placement.of(
        ranks=4, denoise=(0, 1, 2), decode=(3,), attention="pipesp", chunks=2, interleave=True
    )
    assert read_placement((FILES / "placement.json").read_text()) == wanted
    request = RunFolder(FILES / "long").read().jobs[0].request
    assert isinstance(request, BlocksRequest)
    assert request.block_frames == 2
