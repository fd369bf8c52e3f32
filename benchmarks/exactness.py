"""Measure how far several ranks' final latents are from one rank's: `python benchmarks/exactness.py`.

The runs use the model's default steps and guidance, one seed, fp32, and real gloo processes of one thread
each. ParaDiT promises differences of at most 1e-5.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from machine import write_results
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.parallel.predictor import LocalPredictor, Predictor
from paradit.progress import Progress
from paradit.testing import run_world
from paradit.text_to_video import load, text_to_video

PROMPT = "a red circle moving right on a dark background"
PLACEMENTS = [
    *(Placement(ranks=ranks, attention="ulysses") for ranks in (2, 3, 4, 5)),
    *(Placement(ranks=ranks, attention="ulysses", cfg_degree=2) for ranks in (2, 4)),
    Placement.of(ranks=2, attention="pipesp", chunks=2),
    Placement.of(ranks=2, attention="pipesp", chunks=3, interleave=True),
    Placement(ranks=2, attention="ring"),
    Placement(ranks=4, attention="usp"),
]


def final_latents(model_name: str, num_frames: int, predictor: Predictor) -> Tensor:
    torch.set_num_threads(1)
    spec = read_spec(find_model(model_name))
    request = resolve(Request(prompt=PROMPT, num_frames=num_frames, dtype="fp32"), spec)
    return text_to_video(load(spec, "fp32"), request, Progress(), predictor).latents


def on_ranks(world: World, model_name: str, num_frames: int, placement: Placement) -> Tensor:
    heads = read_spec(find_model(model_name)).transformers[0].num_attention_heads
    return final_latents(model_name, num_frames, sequence_parallel(world, placement, heads))


def name_of(placement: Placement) -> str:
    options = "".join(f", {value} {name}" for name, value in placement.options.items())
    interleaved = ", interleaved" if placement.interleave else ""
    cfg = ", cfg degree 2" if placement.cfg_degree == 2 else ""
    return f"{placement.ranks} ranks, {placement.attention}{options}{interleaved}{cfg}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 21])
    args = parser.parse_args()
    rows = []
    for num_frames in args.frames:
        expected = final_latents(args.model, num_frames, LocalPredictor())
        for placement in PLACEMENTS:
            found = run_world(on_ranks, placement.ranks, args.model, num_frames, placement, timeout=600)
            difference = max(float((latents - expected).abs().max()) for latents in found)
            rows.append({"frames": num_frames, **placement.flat(), "difference": difference})
            print(f"{num_frames} frames, {name_of(placement)}: {difference:.1e}", flush=True)
    write_results("exactness", {"largest_latent": float(expected.abs().max()), "rows": rows})


if __name__ == "__main__":
    main()
