"""Commands on a calibrated machine: ranks are used as planned, and the video stays the same."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import warm
from made_videos import latents_in
from messages import says
from paradit.engine.this_machine import calibrated_file
from runs import COMMAND, named
from tiny import save_folder

MACHINE = """
ranks = {ranks}
[devices.this]
source = "a test"
dense = {{ bf16 = 1e9, fp32 = 1e9 }}
memory_bandwidth = 1e10
memory = 8e9
multiprocessors = 1
ahead = false
link = "within"
[links.within]
latency = {latency}
bandwidth = 1e9
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    return save_folder(
        "wan21", folder, heads=3, layers=4, width=48, height=48, num_frames=9, num_inference_steps=4
    )


def calibrated(monkeypatch: pytest.MonkeyPatch, cache: Path, ranks: int, latency: float) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    path = calibrated_file(ranks)
    path.parent.mkdir(parents=True)
    path.write_text(MACHINE.format(ranks=ranks, latency=latency))


def told(folder: Path, model: Path, *options: str, torch_free: bool = False) -> list[dict[str, Any]]:
    files = ["-o", "v.mp4", "--latents", "l.safetensors", "--overwrite", "--json"]
    arguments = ["generate", "a red circle", "--model", str(model), *files, *options]
    if torch_free:
        start, option, program = COMMAND
        command = [start, option, f"import sys; sys.modules['torch'] = None; {program}", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    else:
        done = warm.run(arguments, folder, os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


LONG_OPTIONS = ("--method", "dualparal", "--duration", "2s", "--block-frames", "2", "--context-frames", "1")


@pytest.mark.parametrize("latency", [1e-6, 3.0])
def test_generate_arranges_a_long_video_as_planned(
    latency: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a message takes seconds, branches are on separate ranks, so that hidden states never travel."""
    told(tmp_path, model, *LONG_OPTIONS)
    alone = latents_in(tmp_path)
    calibrated(monkeypatch, tmp_path / "cache", 2, latency)
    options = (*LONG_OPTIONS, "--ranks", "2")
    (dry,) = named(told(tmp_path, model, *options, "--dry-run", torch_free=True), "placement")
    events = told(tmp_path, model, *options)
    (placement,) = named(events, "placement")
    assert placement == dry
    assert "as planned for this machine" in placement["reason"]
    if latency > 1:
        assert placement["cfg_degree"] == 2 or placement["decode"] == [1]
    torch.testing.assert_close(latents_in(tmp_path), alone, rtol=0, atol=1e-5)
    # Options that are given are not planned.
    for asked in (("--pipeline-degree", "1"), ("--placement", "denoise=0-1 decode=0")):
        assert not named(told(tmp_path, model, *options, *asked, "--dry-run"), "placement")


def test_without_a_calibrated_machine_a_rule_of_thumb_holds(model: Path, tmp_path: Path) -> None:
    options = (*LONG_OPTIONS, "--ranks", "4", "--dry-run")
    assert not named(told(tmp_path, model, *options), "placement")
    events = told(tmp_path, model, *options, "--placement", "auto")
    (placement,) = named(events, "placement")
    assert says(placement["reason"], "together, 4 layer slices .. rule of thumb .. `paradit calibrate")
    (plan,) = named(events, "plan")
    assert plan["pipeline_degree"] == 4
    (placement,) = named(
        told(tmp_path, model, *options, "--placement", "auto", "--method", "fifo"), "placement"
    )
    assert placement["reason"] == "together: the planner cannot simulate method fifo"


def test_a_calibrated_machine_needs_no_warm_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(tmp_path, model)
    alone = latents_in(tmp_path)
    calibrated(monkeypatch, tmp_path / "cache", 2, 1e-5)
    events = told(tmp_path, model, "--ranks", "2", "--placement", "auto")
    (placement,) = named(events, "placement")
    assert "as planned for this machine" in placement["reason"]
    assert "warm-up" not in {event.get("stage") for event in events}
    torch.testing.assert_close(latents_in(tmp_path), alone, rtol=0, atol=1e-5)


def rehearsals(trace: Path) -> int:
    return sum(event.get("name") == "rehearse" for event in json.loads(trace.read_text())["traceEvents"])


def test_a_form_that_was_planned_is_not_rehearsed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(tmp_path, model)
    alone = latents_in(tmp_path)
    options, trace = ("--ranks", "2", "--explain", "--trace", "t.json"), tmp_path / "t.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    (*_, line, _) = [event["line"] for event in named(told(tmp_path, model, *options), "explain")]
    assert says(line, "attention auto: .. measured in the first step (--verbose names it)")
    assert rehearsals(trace) == 2  # one on each rank
    calibrated(monkeypatch, tmp_path / "cache", 2, 1e-5)
    events = told(tmp_path, model, *options)
    (*_, line, _) = [event["line"] for event in named(events, "explain")]
    assert re.match(r"attention (ulysses|pipesp).*: \S+ s a step, .*this machine", line)
    assert not named(events, "placement")
    assert rehearsals(trace) == 0
    torch.testing.assert_close(latents_in(tmp_path), alone, rtol=0, atol=1e-5)
    # Options that are given are not planned.
    asked = told(tmp_path, model, "--ranks", "2", "--explain", "--attention", "ulysses", "--dry-run")
    assert "attention ulysses: as requested" in [event["line"] for event in named(asked, "explain")]


def test_torchrun_s_ranks_plan_by_the_same_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(tmp_path, model)
    alone = latents_in(tmp_path)
    calibrated(monkeypatch, tmp_path / "cache", 2, 1e-5)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["-o", "v.mp4", "--latents", "l.safetensors", "--overwrite", "--json", "--explain"]
    done = subprocess.run(
        [*torchrun, "-m", "paradit", "generate", "a red circle", "--model", str(model), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    (*_, line, _) = [event["line"] for event in named(events, "explain")]
    assert re.match(r"attention (ulysses|pipesp).*: \S+ s a step, .*this machine", line)
    torch.testing.assert_close(latents_in(tmp_path), alone, rtol=0, atol=1e-5)
