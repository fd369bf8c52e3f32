"""How far the final latents on several ranks are from those in one process: `python benchmarks/exactness.py`.

The model's default steps and guidance, one seed, fp32, one thread a process (real gloo processes). The
promise is 1e-5.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from machine import write_results
from paradit.distributed.mesh import Mesh
from paradit.distributed.world import World
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.progress import Progress
from paradit.requests import Request, resolve
from paradit.sampling.team import Alone, Team
from paradit.sampling.together import Together
from paradit.testing import run_world
from paradit.text_to_video import load, text_to_video

PROMPT = "a red circle moving right on a dark background"
PLACEMENTS = [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (2, 2), (4, 2)]
"""(ranks, cfg degree)."""


def final_latents(model_name: str, num_frames: int, team: Team) -> Tensor:
    torch.set_num_threads(1)
    spec = read_spec(find_model(model_name))
    request = resolve(Request(prompt=PROMPT, num_frames=num_frames, dtype="fp32"), spec)
    return text_to_video(load(spec, "fp32"), request, Progress(), team).latents


def on_ranks(world: World, model_name: str, num_frames: int, cfg_degree: int) -> Tensor:
    return final_latents(model_name, num_frames, Together(Mesh(world, cfg_degree)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 21])
    args = parser.parse_args()
    rows = []
    for num_frames in args.frames:
        expected = final_latents(args.model, num_frames, Alone())
        for ranks, cfg_degree in PLACEMENTS:
            found = run_world(on_ranks, ranks, args.model, num_frames, cfg_degree, timeout=600)
            difference = max(float((latents - expected).abs().max()) for latents in found)
            rows.append(
                {"frames": num_frames, "ranks": ranks, "cfg_degree": cfg_degree, "difference": difference}
            )
            print(
                f"{num_frames} frames, {ranks} ranks, cfg degree {cfg_degree}: {difference:.1e}", flush=True
            )
    write_results("exactness", {"largest_latent": float(expected.abs().max()), "rows": rows})


if __name__ == "__main__":
    main()
