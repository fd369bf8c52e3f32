"""Simulate Open-Sora-Plan on eight GPUs: PipeDiT's system (arXiv 2511.12056) beside ours, in seconds.

    python benchmarks/planner_open_sora_plan.py

The paper's system is that of `planner_paper.py`: A, Ulysses with offloading; B, 7 GPUs denoise and one
decodes; C, with PipeSP; D, with co-processing. Ours is what `paradit plan` simulates. Needs no GPU.
"""

from __future__ import annotations

import json
from typing import Any

from machine import write_results
from paradit.attention.registry import Choice
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.models.published import published_spec
from paradit.planner.hardware import find_cluster
from paradit.planner.simulate import Candidate, Simulator
from planner_paper import ABLATION_STEPS, DATA, MODELS, OSP, RANKS, ROWS, VIDEOS, Paper

GPUS = ("8xA6000", "8xL40", "8xH100")
SIZES = ("480x352x65", "480x352x129", "640x352x65", "640x352x129", "800x592x65", "800x592x129",
         "1024x576x65", "1024x576x129")  # fmt: skip


ALL: dict[str, Any] = {"ranks": RANKS, "decode": tuple(range(RANKS)), "encode": (0,), "decode_degree": RANKS}
APART: dict[str, Any] = {"ranks": RANKS, "denoise": tuple(range(RANKS - 1)), "decode": (RANKS - 1,)}
WAYS = {
    "ulysses": (ALL, Choice.of("ulysses")),
    "pipesp": (ALL, Choice.of("pipesp", chunks=3)),
    "interleave": (ALL, Choice.of("ulysses", interleave=True)),
    "skiparse": (ALL, Choice.of("skiparse")),
    "skiparse, interleave": (ALL, Choice.of("skiparse", interleave=True)),
    "7 + 1, ulysses": (APART, Choice.of("ulysses")),
    "7 + 1, pipesp": (APART, Choice.of("pipesp", chunks=4)),
    "7 + 1, interleave": (APART, Choice.of("ulysses", interleave=True)),
    "7 + 1, interleave, co-processing": (APART, Choice.of("ulysses", interleave=True)),
}
"""Ways of ours: all GPUs denoise and decode each video, or 7 denoise and one decodes. Each with its form of
attention; `pipesp` sends head by head."""


def ours(gpus: str, size: str) -> dict[str, dict[str, float]]:
    """Return the seconds of ten videos, and of a step, in each of our ways."""
    width, height, num_frames = map(int, size.split("x"))
    spec = published_spec(MODELS[OSP])
    asked = {"width": width, "height": height, "num_frames": num_frames}
    request = resolve(Request(prompt="any", num_inference_steps=ABLATION_STEPS, **asked), spec)
    simulator, found = Simulator(find_cluster(gpus), spec, request), {}
    for way, (where, choice) in WAYS.items():
        candidate = Candidate(placement=Placement(**where), coprocess="co-processing" in way)
        one = simulator.simulate(candidate, VIDEOS, choice)
        found[way] = {"seconds": one.seconds, "step": one.step, "waiting": one.exposed}
    return found


def papers(gpus: str, size: str) -> dict[str, float]:
    """Return the simulated seconds of ten videos in each row of the paper's ablation."""
    paper = Paper(find_cluster(gpus))
    return {name: paper.total(OSP, size, ABLATION_STEPS, row) for name, row in zip("ABCD", ROWS, strict=True)}


def main() -> None:
    reported = json.loads(DATA.read_text())["ablation_30_steps"][OSP]
    rows = []
    for gpus in GPUS:
        print(f"\n{gpus}: seconds for {VIDEOS} videos, {ABLATION_STEPS} steps")
        print("| | " + " | ".join([*"ABCD", *WAYS]) + " |")
        for size in SIZES:
            theirs, own = papers(gpus, size), ours(gpus, size)
            said = [reported[row][size] for row in ROWS] if gpus == "8xA6000" else None
            rows.append({"gpus": gpus, "size": size, "reported": said, "paper": theirs, "ours": own})
            cells = [*theirs.values(), *(one["seconds"] for one in own.values())]
            print(f"| {size} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |",
                  flush=True)  # fmt: skip
    write_results("planner_open_sora_plan", {"rows": rows})


if __name__ == "__main__":
    main()
