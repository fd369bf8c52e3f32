"""How a run uses its ranks where this machine is calibrated: as is quickest; and the video is the same."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from paradit.engine.job import Job
from paradit.engine.planned import Open, planned
from paradit.engine.this_machine import calibrated_file
from paradit.models.published import published_spec
from paradit.placement import Form, Placement
from paradit.planner.search import GOALS, candidates, pipelines
from paradit.planner.simulate import Simulator, Way
from paradit.requests import ENDLESS, Request, resolve
from paradit.scheduling.balance import Choice
from runs import COMMAND
from test_planner import cluster
from tiny import save_folder

SPEC = published_spec("Wan2.1-T2V-1.3B-Diffusers")
FORM = Form(attention="ulysses")


def jobs(number: int = 1, **asked: Any) -> list[Job]:
    asked = {"width": 480, "height": 288, "num_frames": 33, "num_inference_steps": 6} | asked
    request = resolve(Request(prompt="any", dtype="bf16", **asked), SPEC)
    return [Job(request=request, output=f"{index}.mp4", latents=None, index=index) for index in range(number)]


LONG = {"num_frames": 181, "method": "dualparal"}


def choice(made: list[Job], base: Placement, left: Open | None = None, **link: float) -> Choice:
    found = planned(made, SPEC, base, cluster(base.ranks, **link), left or Open())
    assert found is not None
    assert found == planned(made, SPEC, base, cluster(base.ranks, **link), left or Open())
    assert found.reason.startswith(next(iter(found.seconds)))
    for job in made:
        found.placement.check(job.request, SPEC)
    return found


@pytest.mark.parametrize("bandwidth", [1e7, 1e9, 1e11])
def test_a_long_video_is_made_in_the_quickest_way(bandwidth: float) -> None:
    made, base = jobs(**LONG), Placement(ranks=6, compile=True)
    found = choice(made, base, bandwidth=bandwidth)
    simulator = Simulator(cluster(6, bandwidth=bandwidth), SPEC, made[0].request, long=made[0].request)
    every = [
        simulator.simulate(Way(placement=one, method="dualparal"), 1, FORM)
        for one in pipelines(simulator, 1)
        if one.ranks == 6
    ]
    best = min(every, key=GOALS["latency"])
    assert found.placement == replace(best.way.placement, compile=True)
    assert next(iter(found.seconds.values())) == best.seconds


def test_what_was_asked_for_stays() -> None:
    base = Placement(ranks=4)
    for cfg_degree in (1, 2):
        found = choice(jobs(**LONG), base, Open(cfg_degrees=(cfg_degree,)))
        assert found.placement.cfg_degree == cfg_degree
    found = choice(jobs(**LONG), replace(base, pipeline_degree=2), bandwidth=1e12, latency=0.0)
    assert found.placement.pipeline_degree == 2
    many = jobs(8, **LONG)
    assert choice(many, base).placement.replicas > 1
    assert choice(many, base, Open(replicas=False)).placement.replicas == 1


def test_a_video_as_a_whole_is_made_in_the_quickest_way() -> None:
    for number in (1, 4):
        made, base = jobs(number), Placement(ranks=4)
        found = choice(made, base, bandwidth=3e9)
        simulator = Simulator(cluster(4, bandwidth=3e9), SPEC, made[0].request)
        goal = GOALS["latency" if number == 1 else "throughput"]
        known = [
            simulator.simulate(way, number, form)
            for way, form in candidates(simulator, number)
            if not way.coprocess
            and way.placement.decode_degree == 1
            and form.attention in ("ulysses", "pipesp")
        ]
        assert next(iter(found.seconds.values())) == pytest.approx(min(map(goal, known))[0], rel=1e-9)
        assert found.placement.attention == "auto"
    # Messages that take for ever, and prompts enough: each makes its own.
    assert choice(jobs(4), Placement(ranks=4), bandwidth=1e5).placement.replicas == 4


def test_what_lacks_least_where_nothing_fits() -> None:
    made, base, on = jobs(**LONG), Placement(ranks=4), cluster(4)
    small = replace(on, device=replace(on.device, memory=1e9))
    found = planned(made, SPEC, base, small, Open())
    assert found is not None
    simulator = Simulator(small, SPEC, made[0].request, long=made[0].request)
    needed = [
        max(simulator.memory(Way(placement=one, method="dualparal")))
        for one in pipelines(simulator, 1)
        if one.ranks == 4
    ]
    assert max(simulator.memory(Way(placement=found.placement, method="dualparal"))) == min(needed)


def test_videos_without_end_and_others() -> None:
    assert choice(jobs(num_frames=ENDLESS, trim=True), Placement(ranks=4)).placement.ranks == 4
    made = jobs(num_frames=181, method="fifo")
    assert planned(made, SPEC, Placement(ranks=4), cluster(4), Open()) is None


MACHINE = """
ranks = {ranks}
[devices.this]
source = "a test"
dense = {{ bf16 = 1e9, fp32 = 1e9 }}
memory_bandwidth = 1e10
memory = 8e9
units = 1
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
    command = [*COMMAND, "generate", "a red circle", "--model", str(model), *files, *options]
    if torch_free:
        command[2] = f"import sys; sys.modules['torch'] = None; {command[2]}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ}, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def only(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


LONG_OPTIONS = ("--method", "dualparal", "--duration", "2s", "--block-frames", "2", "--context-frames", "1")


@pytest.mark.parametrize("latency", [1e-6, 3.0])
def test_generate_arranges_a_long_video_as_planned(
    latency: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a message takes seconds, branches are apart: hidden states never travel."""
    told(tmp_path, model, *LONG_OPTIONS)
    alone = load_file(tmp_path / "l.safetensors")["latents"]
    calibrated(monkeypatch, tmp_path / "cache", 2, latency)
    options = (*LONG_OPTIONS, "--ranks", "2")
    (dry,) = only(told(tmp_path, model, *options, "--dry-run", torch_free=True), "placement")
    events = told(tmp_path, model, *options)
    (placement,) = only(events, "placement")
    assert placement == dry
    assert "as planned for this machine" in placement["reason"]
    if latency > 1:
        assert placement["cfg_degree"] == 2 or placement["decode"] == [1]
    torch.testing.assert_close(load_file(tmp_path / "l.safetensors")["latents"], alone, rtol=0, atol=1e-5)
    # What is asked for is not planned.
    for asked in (("--pipeline-degree", "1"), ("--placement", "denoise=0-1 decode=0")):
        assert not only(told(tmp_path, model, *options, *asked, "--dry-run"), "placement")


def test_without_a_calibrated_machine_a_rule_of_thumb_holds(model: Path, tmp_path: Path) -> None:
    options = (*LONG_OPTIONS, "--ranks", "4", "--dry-run")
    assert not only(told(tmp_path, model, *options), "placement")
    events = told(tmp_path, model, *options, "--placement", "auto")
    (placement,) = only(events, "placement")
    assert placement["reason"].startswith("together, 4 stages, by a rule of thumb: `paradit calibrate")
    (plan,) = only(events, "plan")
    assert plan["pipeline_degree"] == 4
    (placement,) = only(
        told(tmp_path, model, *options, "--placement", "auto", "--method", "fifo"), "placement"
    )
    assert placement["reason"] == "together: the planner does not know method fifo"


def test_a_calibrated_machine_needs_no_warm_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(tmp_path, model)
    alone = load_file(tmp_path / "l.safetensors")["latents"]
    calibrated(monkeypatch, tmp_path / "cache", 2, 1e-5)
    events = told(tmp_path, model, "--ranks", "2", "--placement", "auto")
    (placement,) = only(events, "placement")
    assert "as planned for this machine" in placement["reason"]
    assert "warm-up" not in {event.get("stage") for event in events}
    torch.testing.assert_close(load_file(tmp_path / "l.safetensors")["latents"], alone, rtol=0, atol=1e-5)
