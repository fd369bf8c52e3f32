"""Made-up machines for the planner, and the command `paradit plan`."""

import subprocess
import sys
from typing import Any

from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.distributed.shares import Shares
from paradit.models.published import published_spec
from paradit.planner.costs import BlockSeconds
from paradit.planner.hardware import Cluster, Device, Link
from paradit.planner.simulate import Simulator
from paradit.planner.step import Branch
from rehearsed_attention import DEPTH, FINISH, PROJECTION, ROW

DEVICE = Device(
    name="any",
    dense={"bf16": 100e12, "fp32": 20e12},
    memory_bandwidth=1e12,
    memory=48e9,
    multiprocessors=100,
    message_multiprocessors=10,
    launch=5e-6,
    ahead=True,
    narrow=0.0,
    efficiency={"product": 0.7, "flash": 0.6, "efficient": 0.3, "convolution": 0.3, "memory": 0.8},
    source="none",
)


def cluster(ranks: int, latency: float = 1e-5, bandwidth: float = 1e10, **link: Any) -> Cluster:
    within = Link(name="within", latency=latency, bandwidth=bandwidth, **link)
    return Cluster(device=DEVICE, devices=ranks, link=within, network=within)


def branch(on: Cluster, shares: Shares, *, batch: int = 2, part: float = 1.0) -> Branch:
    costs = BlockSeconds(value=part * PROJECTION, finish=part * FINISH, head_row=ROW, wave=0.0, merge=0.0)
    return Branch(
        cluster=on,
        ranks=tuple(range(shares.num_ranks)),
        shares=shares,
        costs=[costs] * shares.num_ranks,
        row_bytes=batch * DEPTH * 4,
        batch=batch,
    )


def simulator(on: Cluster, model: str = "Wan2.1-T2V-1.3B-Diffusers", **asked: Any) -> Simulator:
    spec = published_spec(model)
    asked = {"width": 480, "height": 288, "num_frames": 33, "num_inference_steps": 4} | asked
    return Simulator(on, spec, resolve(Request.of(prompt="any", **asked), spec))


MACHINE = """
ranks = 2
[devices.this]
source = "measured"
dense = { bf16 = 1e12, fp32 = 5e11 }
memory_bandwidth = 2e10
memory = 8e9
multiprocessors = 1
efficiency = { flash = 0.4 }
[links.within]
latency = 5e-5
bandwidth = 1e9
[residuals]
flash = [0.01, -0.02]
"""
"""Calibration file of two ranks."""


WITHOUT_TORCH = """
import sys
from typing import Any
from paradit.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
"""Program that runs `paradit`, and fails if it has imported torch."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `paradit plan` without torch."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
