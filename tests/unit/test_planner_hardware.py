"""Devices of the planner: how people write their names, and that each can be planned for."""

import math
from pathlib import Path

import pytest

from messages import says
from paradit.attention.registry import Choice
from paradit.config.errors import InputError
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.models.published import published_spec
from paradit.planner.hardware import find_cluster, known_devices
from paradit.planner.simulate import Candidate, Simulator
from paths import ROOT
from planner_cases import MACHINE, run

WRITTEN = {
    "4090": "1xRTX4090",
    "RTX 4090": "1xRTX4090",
    "RTX4090": "1xRTX4090",
    "rtx-4090": "1xRTX4090",
    "NVIDIA GeForce RTX 4090": "1xRTX4090",
    "3090 24GB": "1xRTX3090",
    "2 4090": "2xRTX4090",
    "8x4090": "8xRTX4090",
    "4090x2": "2xRTX4090",
    "8*H100": "8xH100",
    "8 x L40": "8xL40",
    "8 L40": "8xL40",
    "8 \N{MULTIPLICATION SIGN} L40": "8xL40",
    "8 H100 GPUs": "8xH100",
    "H100x8": "8xH100",
    "2x8xH100": "2x8xH100",
    "2 x 8 H100": "2x8xH100",
    "H100-SXM": "1xH100",
    "h100sxm": "1xH100",
    "NVIDIA H100 80GB HBM3": "1xH100",
    "H200 141 GB": "1xH200",
    "NVIDIA A100 80GB": "1xA100",
    "a100-80gb": "1xA100",
    "8xa100_40gb": "8xA100-40GB",
    "NVIDIA A100-SXM4-40GB": "1xA100-40GB",
    "Tesla T4": "1xT4",
    "L40S PCIe": "1xL40S",
    "NVIDIA RTX A6000": "1xA6000",
    "NVIDIA RTX 6000 Ada Generation": "1xRTX6000Ada",
    "AMD Instinct MI300X": "1xMI300X",
    "MI300X x 8": "8xMI300X",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_devices_as_people_write_them(text: str) -> None:
    found = find_cluster(text)
    assert found.name == WRITTEN[text]
    assert find_cluster(found.name) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xL41", "device 'L41' .. the nearest first: L40, L40S, "),
        ("RTX 4080", "'RTX 4080' .. the nearest first: RTX4090, "),
        # The name of another device is not taken for a known one.
        ("H100 PCIe", "'H100 PCIe' .. the nearest first: H100, "),
        ("A100 24GB", "'A100 24GB' .. the nearest first: A100, A100-40GB, "),
        ("RTX 4090 D", "'RTX 4090 D' .. the nearest first: RTX4090, "),
        ("3090 Ti", "'3090 Ti' .. the nearest first: RTX3090, "),
        ("RTX 6000", "'RTX 6000' .. the nearest first: A6000, RTX6000Ada, "),
        ("A10G", "'A10G' .. the nearest first: A10, "),
        ("8x", "gpus .. 8xL40 or 2x8xH100 .. .toml .. got '8x'"),
        ("", "got ''"),
        ("0xL40", "gpus must be 1 to 128 in all, got '0xL40'"),
        ("999999x999999xH100", "gpus must be 1 to 128 in all"),
        ("9" * 5000 + "xH100", "gpus must be 1 to 128 in all, got '99999"),
    ],
)
def test_what_is_not_known(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        find_cluster(text)
    assert says(str(caught.value), said)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", known_devices())
def test_every_device_is_planned_for(name: str) -> None:
    spec = published_spec("Wan2.1-T2V-1.3B-Diffusers")
    request = resolve(Request(prompt="any", width=480, height=288, num_frames=17), spec)
    for text in (f"2x{name}", f"2x2x{name}"):
        cluster = find_cluster(text)
        assert cluster.device.source
        way = Candidate(placement=Placement(ranks=cluster.ranks))
        simulator = Simulator(cluster, spec, request, "fp32")
        found = simulator.simulate(way, 2, Choice.of("ulysses"))
        assert 0 < found.step < found.latency < found.seconds < math.inf
    # The documentation lists the device under this name.
    page = (ROOT / "docs" / "reference" / "gpus.md").read_text(encoding="utf-8")
    assert f"| {name} |" in page


def test_what_a_device_computes_in(tmp_path: Path) -> None:
    small = ("--model", "wan2.1-t2v-1.3b-diffusers", "--size", "480x288", "--num-frames", "17")
    refused = run(*small, "--gpus", "2xT4")
    assert refused.returncode == 2
    assert says(refused.stderr, "paradit: error: a T4 .. dtype bf16: use dtype fp32")
    assert run(*small, "--gpus", "2xT4", "--dtype", "fp32").returncode == 0
    # A plan's command makes the planned video.
    assert " --dtype fp32" in run(*small, "--gpus", "2xA100", "--dtype", "fp32").stdout
    # On a CPU, models run in fp32, so a plan for one is in fp32, too.
    figures = MACHINE.replace("memory = 8e9", "memory = 8e10")
    for ahead, dtype in (("true", "bf16"), ("false", "fp32")):
        machine = tmp_path / f"{dtype}.toml"
        machine.write_text(figures.replace("multiprocessors", f"ahead = {ahead}\nmultiprocessors"))
        planned = run(*small, "--gpus", str(machine)).stdout
        assert f", {dtype}, on " in planned
        assert "--dtype" not in planned


def test_a_model_that_must_be_converted_first() -> None:
    planned = run("--model", "Open-Sora-Plan-v1.3.0", "--gpus", "1xH100", "--num-frames", "29")
    assert says(planned.stdout.splitlines()[-1], "to run .. download its checkpoint .. `paradit convert`")
