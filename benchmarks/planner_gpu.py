"""Compare the planner with a GPU's seconds and bytes, for published models with random weights.

    python benchmarks/planner_gpu.py            # on a GPU of at least 80 GB
    python benchmarks/planner_gpu.py --tiny     # tries the script, anywhere
    python benchmarks/planner_gpu.py --again    # simulates the measured cases again, with the present planner

Transformers are of the real classes and widths, in bf16. The larger ones have fewer layers, so that
everything takes a few minutes; time and activations of a layer are those of the whole model. VAEs are whole,
in fp32. First the GPU is calibrated as by `paradit calibrate`, on other shapes. Each case is simulated with
that and with the data sheet's file (`--gpus`), run once, and then measured: a denoising step, the decode, and
the peak of both, without the text encoder. All runs on one GPU, so no message travels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from machine import RESULTS, write_results
from paradit.attention.registry import Choice
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.device_memory import peak_memory_bytes
from paradit.distributed.timing import now
from paradit.engine.microbenchmarks import Calibration, Sizes, calibrate
from paradit.models.hunyuan_video.adapter import HunyuanVideoModel
from paradit.models.spec import ModelSpec
from paradit.models.wan.adapter import WanModel
from paradit.parallel.predictor import LocalPredictor
from paradit.planner.calibration import fit_device, machine_file, median_error
from paradit.planner.hardware import Cluster, find_cluster
from paradit.planner.messages import fit_link
from paradit.planner.simulate import Candidate, Simulator
from paradit.progress import Event, Progress, Stepped
from paradit.sampling.sampler import Work
from paradit.stages.decode import frames
from paradit.stages.denoise import denoise
from random_models import random_pipeline

WAN_1B, WAN_14B = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"
WAN_5B, HUNYUAN = "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "hunyuanvideo-community/HunyuanVideo"
CASES: list[tuple[str, dict[str, int], list[tuple[int, int, int]]]] = [
    # Model, layers instead of all its layers, sizes (width, height, frames).
    (WAN_1B, {}, [(832, 480, 33), (832, 480, 81)]),
    (WAN_14B, {"num_layers": 6}, [(832, 480, 81), (1280, 720, 81)]),
    (WAN_5B, {"num_layers": 6}, [(1280, 704, 121)]),
    (HUNYUAN, {"num_layers": 2, "num_single_layers": 4}, [(960, 544, 65), (960, 544, 129)]),
]
TINY = [
    (WAN_1B, {"num_layers": 1}, [(64, 64, 5)]),
    (HUNYUAN, {"num_layers": 1, "num_single_layers": 1}, [(64, 64, 5)]),
]
TINY_SIZES = Sizes(
    products=[(64, 192), (320, 384)],
    attentions=[(2, 96, 384, 64), (2, 384, 384, 32)],
    blocks=[(2, 32, (1, 4, 4)), (4, 48, (5, 16, 16))],
    decodes=[(16, (5, 64, 64))],
    copy_bytes=2**24,
    message_bytes=2**20,
)
STEPS, TILE = 3, 256
STAGES = ("denoise", "decode")
WAYS = "calibrated", "data sheet", "estimated"


class Steps(Progress):
    """Progress that records the time at which each step ended on the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(self.hear)
        self.ends: list[float] = []
        self._device = device

    def hear(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.ends.append(now(self._device))


def random_model(name: str, layers: dict[str, int], dtype: torch.dtype, device: torch.device) -> Any:
    """Return a published model with random weights, and without its text encoder."""
    pipeline, spec = random_pipeline(name, layers, dtype, device)
    return (WanModel if "Wan" in spec.pipeline_class else HunyuanVideoModel)(pipeline, spec, dtype)


def peak(device: torch.device) -> int:
    """Return the peak bytes of memory in use since the last call."""
    found = peak_memory_bytes(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return found


@torch.no_grad()
def take(model: Any, request: Request) -> dict[str, float]:
    """Return the seconds of a step and of the decode, whole and in tiles, and the peak bytes of each."""
    device = model.device
    embeds, *others = model.prompt_shapes
    prompt = (
        torch.randn(embeds, dtype=model.dtype, device=device),
        *(torch.ones(shape, dtype=model.dtype, device=device) for shape in others),
    )
    prompts = (prompt,) * request.num_branches(model.spec)

    def denoised(request: Request) -> tuple[Tensor, list[float]]:
        progress = Steps(device)
        work = Work(
            model=model, request=request, prompts=prompts, progress=progress, predictor=LocalPredictor()
        )
        (latents,) = denoise(work)
        return latents, [after - before for before, after in pairwise(progress.ends)]

    def decoded(latents: Tensor, tile: int | None) -> float:
        began = now(device)
        for _ in frames(model, latents, tile, Progress()):
            pass
        return now(device) - began

    # A warm-up, whose time and memory do not count.
    warm, _ = denoised(replace(request, num_inference_steps=1))
    decoded(warm[:, :, :1], None)
    peak(device)
    latents, steps = denoised(request)
    found = {"step": median(steps), "peak denoise": peak(device)}
    for tile in (None, TILE):
        found[f"decode {tile}"] = decoded(latents, tile)
        found[f"peak decode {tile}"] = peak(device)
    return found


def simulated(cluster: Cluster, spec: ModelSpec, request: Request, dtype: str) -> dict[str, float]:
    simulator, form = Simulator(cluster, spec, request, dtype), Choice.of("ulysses")
    candidates = {
        tile: simulator.simulate(Candidate(placement=Placement(), tile=tile), 1, form)
        for tile in (None, TILE)
    }
    return {"step": candidates[None].step} | {
        f"decode {tile}": candidate.stages["decode"] for tile, candidate in candidates.items()
    }


def estimated(spec: ModelSpec, request: Request, itemsize: int) -> dict[str, float]:
    """Return the peak bytes that the planner estimates for each stage of the model that is loaded here."""
    size, branches = (
        (request.num_frames, request.height, request.width),
        request.num_branches(spec),
    )
    found = {}
    for tile in (None, TILE):
        parts = spec.rank_memory_bytes(*size, itemsize, STAGES, tile=tile, cached=branches)
        always = parts["weights"] + parts["latents"]
        found["peak denoise"] = always + parts["text_cache"] + parts["activations"]
        found[f"peak decode {tile}"] = always + parts["decode"]
    return found


def request_of(size: Sequence[int], spec: ModelSpec) -> Request:
    width, height, num_frames = size
    asked = Request(
        prompt="a circle", width=width, height=height, num_frames=num_frames, num_inference_steps=STEPS
    )
    return resolve(asked, spec)


def all_say(
    known: dict[str, Cluster], spec: ModelSpec, request: Request, dtype: str, itemsize: int
) -> dict[str, dict[str, float]]:
    says = {candidate: simulated(cluster, spec, request, dtype) for candidate, cluster in known.items()}
    return says | {"estimated": estimated(spec, request, itemsize)}


def calibrated(found: Calibration) -> str:
    device = fit_device(found.measured, found.copies, "benchmarks/planner_gpu.py")
    for kind in ("product", "attention", "block", "decode"):
        print(f"  {kind}: median residual {100 * median_error(found.measured, device, kind):.1f} %")
    link = fit_link(found.messages, found.copies, 1)
    return machine_file(device, link, 1, found.measured, [])


def clusters(gpus: str, text: str) -> dict[str, Cluster]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine.toml"
        path.write_text(text)
        return {"calibrated": find_cluster(str(path)), "data sheet": find_cluster(gpus)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gpus", default="H200", help="the data sheet's name")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    if asked.again:
        again(asked.gpus)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    text = calibrated(calibrate(1, Progress(), TINY_SIZES if asked.tiny else None))
    known = clusters(asked.gpus, text)
    rows: list[dict[str, Any]] = []
    for model_name, layers, sizes in TINY if asked.tiny else CASES:
        model = random_model(model_name, layers, dtype, device)
        for width, height, num_frames in sizes:
            began = time.monotonic()
            request = request_of((width, height, num_frames), model.spec)
            says = all_say(known, model.spec, request, name, dtype.itemsize)
            case = {"model": model_name, "layers": layers, "size": [width, height, num_frames]}
            for what, measured in take(model, request).items():
                said = {candidate: each[what] for candidate, each in says.items() if what in each}
                rows.append({**case, "what": what, "measured": measured, **said})
                show(rows[-1])
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
            # After every case, so that an interrupted run has results, too.
            write_results("planner_gpu", {"machine_file": text, "rows": rows})
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    errors(rows)


def again(gpus: str) -> None:
    """Simulate and estimate the stored cases again, and print the comparison; writes nothing."""
    found = json.loads((RESULTS / "planner_gpu.json").read_text())
    known, said = clusters(gpus, found["machine_file"]), {}
    for row in found["rows"]:
        case = row["model"], *row["layers"].items(), *row["size"]
        if case not in said:
            # Only the sizes are needed, so no memory is allocated.
            spec = random_model(row["model"], row["layers"], torch.bfloat16, torch.device("meta")).spec
            said[case] = all_say(known, spec, request_of(row["size"], spec), "bf16", 2)
        row |= {candidate: says[row["what"]] for candidate, says in said[case].items() if row["what"] in says}
        show(row)
    errors(found["rows"])


def errors(rows: list[dict[str, Any]]) -> None:
    for candidate in WAYS:
        off = [abs(row[candidate] / row["measured"] - 1) for row in rows if candidate in row]
        print(f"{candidate}: median error {100 * median(off):.1f} %, most {100 * max(off):.1f} %")


def show(row: dict[str, Any]) -> None:
    unit = 1e9 if row["what"].startswith("peak") else 1.0
    ratios = "  ".join(
        f"{candidate} {row[candidate] / row['measured']:.2f}" for candidate in WAYS if candidate in row
    )
    said = f"{row['model']} {row['size']} {row['what']}"
    print(f"{said}: {row['measured'] / unit:.3g}; over it: {ratios}", flush=True)


if __name__ == "__main__":
    main()
