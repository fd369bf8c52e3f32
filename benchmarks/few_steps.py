"""Compare ways to place the stages when there are four denoising steps: measured, and as the planner says.

    python benchmarks/few_steps.py --prompts 6 --repeats 2

The bundled model makes a burst of videos on two ranks (one thread each), with its LoRA shapes-4step and the
preset shapes-4, from text and from a first image. It shows what these give, as ratios of the seconds of the
whole burst:

- disaggregation: texts and pictures are encoded, and videos decoded, on another rank than they are denoised;
- parallel decode: both ranks decode, each video's tiles together, or whole videos in turn;
- encoding beside denoising: the rank that decodes also encodes the texts, ahead of the one that denoises.

The planner's ratios are of its simulated seconds, on figures that are measured first, as by
`paradit calibrate`. All ways take turns within one run; the figures are medians.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median
from typing import Any

from machine import write_results
from paradit.attention.registry import Choice
from paradit.config.placement import Placement
from paradit.planner.simulate import Candidate, Simulator
from paradit.scheduling.stages import STAGES
from paradit.testing import run_world
from planner_here import cluster_of, measured_here
from stages import Burst, take

RANKS = 2
TILE = 64
"""Side of the tiles, in pixels, that ranks share: the picture's 96 x 96 pixels are four of them."""
TOGETHER = "together"
WAYS = {
    TOGETHER: Candidate(placement=Placement(ranks=RANKS, attention="ulysses")),
    "together, decoding shared": Candidate(
        placement=Placement(ranks=RANKS, encode=(0,), decode=(0, 1), decode_degree=2, attention="ulysses"),
        tile=TILE,
    ),
    "apart": Candidate(placement=Placement(ranks=RANKS, denoise=(0,), decode=(1,))),
    "apart, texts encoded where denoised": Candidate(
        placement=Placement(ranks=RANKS, encode=(0,), denoise=(0,), decode=(1,))
    ),
    "apart, both decode": Candidate(
        placement=Placement(ranks=RANKS, encode=(1,), denoise=(0,), decode=(1, 0))
    ),
}
GAINS = {
    "disaggregation": ("apart", TOGETHER),
    "parallel decode: tiles shared": ("together, decoding shared", TOGETHER),
    "parallel decode: videos in turn, with disaggregation": ("apart, both decode", TOGETHER),
    "encoding beside denoising": ("apart", "apart, texts encoded where denoised"),
}
"""What is gained, as (way, way to compare it with)."""


def burst_of(num_prompts: int, *, from_image: bool) -> Burst:
    asked = (("preset", "shapes-4"),)
    return Burst(number=num_prompts, asked=asked, loras=("shapes-4step",), from_image=from_image)


def measured(burst: Burst, repeats: int) -> dict[str, dict[str, Any]]:
    """Return the median seconds of a burst in each way, and those of its requests' stages."""
    taken: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in WAYS}
    for _ in range(repeats):
        for name, way in WAYS.items():
            tiled = replace(burst, asked=(*burst.asked, ("vae_tile", way.tile)))
            taken[name].append(take(way.placement, tiled))
    return {
        name: {
            "seconds": median(seconds for seconds, _ in each),
            "stages": {stage: median(stages[stage] for _, stages in each) for stage in STAGES},
        }
        for name, each in taken.items()
    }


def planned(burst: Burst, machine: str) -> dict[str, dict[str, Any]]:
    """Return the simulated seconds of a burst in each way, and those of its requests' stages.

    machine: text of the machine's calibration file.
    """
    with burst.folder() as folder:
        simulator = Simulator(cluster_of(machine), burst.spec, burst.jobs(folder)[0].request, "fp32")
        found = {
            name: simulator.simulate(way, burst.number, Choice.of("ulysses")) for name, way in WAYS.items()
        }
    return {
        name: {
            "seconds": one.seconds,
            "stages": {stage: burst.number * seconds for stage, seconds in one.stages.items()},
        }
        for name, one in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    machine, *_ = run_world(measured_here, RANKS, timeout=600)
    rows = []
    for name, from_image in (("from text", False), ("from an image", True)):
        burst = burst_of(args.prompts, from_image=from_image)
        found = {"measured": measured(burst, args.repeats), "planned": planned(burst, machine)}
        gains = {
            gain: {how: ways[way]["seconds"] / ways[base]["seconds"] for how, ways in found.items()}
            for gain, (way, base) in GAINS.items()
        }
        rows.append({"case": name, "gains": gains, **found})
        print(f"\n{name}, {args.prompts} prompts (fraction of the time without):  measured  planned")
        for gain, ratios in gains.items():
            print(f"  {gain:56} {ratios['measured']:8.2f} {ratios['planned']:8.2f}")
        best = {how: min(ways, key=lambda way: ways[way]["seconds"]) for how, ways in found.items()}
        print(f"  fastest, measured: {best['measured']}; planned: {best['planned']}", flush=True)
    content = {"prompts": args.prompts, "repeats": args.repeats, "machine_file": machine, "rows": rows}
    write_results("few_steps", content)


if __name__ == "__main__":
    main()
