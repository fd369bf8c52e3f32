"""Estimate a rank's memory, with all stages together or with VAE and text encoder on another rank.

    python benchmarks/memory.py

For Wan 2.1 14B and HunyuanVideo 13B it is computed from the published configurations, without weights, in
bf16 (the VAE in fp32). For the bundled model it is also measured, on two ranks of a CPU and three times each:
the peak, less what the process holds after it has made a smaller video and freed the model, so that all
libraries are loaded.
"""

from __future__ import annotations

import gc
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan

from machine import write_results
from paradit.cli.text import amount
from paradit.config.methods.method import method_of, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.device_memory import peak_memory_bytes
from paradit.distributed.world import World
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.folder import find_model
from paradit.models.spec import ModelSpec, Weights, read_spec
from paradit.progress import Progress
from paradit.testing import run_world

RANKS, REPEATS = 4, 3
UMT5_XXL = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
}  # fmt: skip
LLAMA_3_8B = {"vocab_size": 128320, "intermediate_size": 14336, "num_key_value_heads": 8}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
PUBLISHED: dict[str, tuple[str, type[torch.nn.Module], dict[str, dict[str, Any]]]] = {
    # Differences from the classes' defaults. huggingface.co/Wan-AI/Wan2.1-T2V-14B-Diffusers
    "Wan 2.1 14B": (
        "WanPipeline",
        AutoencoderKLWan,
        {"transformer": {}, "vae": {}, "text_encoder": UMT5_XXL},
    ),
    # huggingface.co/hunyuanvideo-community/HunyuanVideo
    "HunyuanVideo 13B": (
        "HunyuanVideoPipeline",
        AutoencoderKLHunyuanVideo,
        {"transformer": {}, "vae": {}, "text_encoder": LLAMA_3_8B, "text_encoder_2": CLIP_L},
    ),
}
VIDEOS = [
    ("Wan 2.1 14B", 832, 480, 81),
    ("Wan 2.1 14B", 1280, 720, 81),
    ("HunyuanVideo 13B", 1280, 720, 129),
]


def published_spec(name: str) -> ModelSpec:
    """Return the spec of a model without its weights; the VAE's parameters are counted from its class."""
    pipeline_class, vae_class, configs = PUBLISHED[name]
    with tempfile.TemporaryDirectory() as folder:
        index = {"_class_name": pipeline_class} | {part: ["of", "a class"] for part in configs}
        (Path(folder) / "model_index.json").write_text(json.dumps(index))
        for part, config in configs.items():
            (Path(folder) / part).mkdir()
            (Path(folder) / part / "config.json").write_text(json.dumps(config))
        spec = read_spec(Path(folder))
    # Only counted, so no memory is allocated.
    with torch.device("meta"):
        vae = vae_class(**configs["vae"])
    counted = Weights(component="vae", parameters=sum(p.numel() for p in vae.parameters()), file_bytes=0)
    others = (weights for weights in spec.weights if weights.component != "vae")
    return replace(spec, name=name, weights=(*others, counted))


def placements(ranks: int) -> dict[str, Placement]:
    apart = Placement(ranks=ranks, denoise=tuple(range(ranks - 1)), decode=(ranks - 1,), attention="ulysses")
    return {"together": Placement(ranks=ranks, attention="ulysses"), "apart": apart}


def estimated(spec: ModelSpec, size: tuple[int, int, int], ranks: int, dtype_bytes: int) -> dict[str, Any]:
    """Return each rank's estimated bytes by part, for each placement."""
    width, height, num_frames = size
    request = resolve(Request(prompt="a", width=width, height=height, num_frames=num_frames), spec)
    return {
        name: method_of(request).memory_by_rank(placement, request, spec, dtype_bytes)
        for name, placement in placements(ranks).items()
    }


def measured(world: World, way: str, folder: str) -> int:
    """Return a rank's peak bytes, less what its process holds with libraries but no model loaded."""
    spec, placement = read_spec(find_model("shapes")), placements(2)[way]

    def make(**asked: Any) -> None:
        request = resolve(Request(prompt="a red circle", num_inference_steps=2, **asked), spec)
        job = Job(request=request, output=f"{folder}/a.mp4", latents=None)
        make_videos([job], spec, placement, Progress(), overwrite=True, world=world)
        gc.collect()

    make(width=32, height=32, num_frames=5)
    before = psutil.Process().memory_info().rss
    make()
    return peak_memory_bytes(world.device) - before


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, *size in VIDEOS:
        width, height, num_frames = size
        ways = estimated(published_spec(name), (width, height, num_frames), RANKS, dtype_bytes=2)
        rows.append({"model": name, "size": size, "dtype": "bf16", "ranks": RANKS, "bytes_by_rank": ways})
    spec = read_spec(find_model("shapes"))
    size = [spec.defaults.width, spec.defaults.height, spec.defaults.num_frames]
    ways = estimated(spec, (size[0], size[1], size[2]), 2, dtype_bytes=4)
    with tempfile.TemporaryDirectory() as folder:
        peaks = {
            way: [run_world(measured, 2, way, folder, timeout=600) for _ in range(REPEATS)] for way in ways
        }
    rows.append(
        {
            "model": "shapes",
            "size": size,
            "dtype": "fp32",
            "ranks": 2,
            "bytes_by_rank": ways,
            "measured": peaks,
        }
    )
    for row in rows:
        width, height, num_frames = row["size"]
        print(
            f"\n{row['model']}, {width}x{height}, {num_frames} frames, {row['dtype']}, {row['ranks']} ranks"
        )
        for way, by_rank in row["bytes_by_rank"].items():
            print(f"  {way:10}", "  ".join(f"{rank}: {_parts(parts)}" for rank, parts in enumerate(by_rank)))
            if "measured" in row:
                for rank, peaks_of in enumerate(zip(*row["measured"][way], strict=True)):
                    print(f"    measured {rank}:", ", ".join(amount(peak, "B") for peak in sorted(peaks_of)))
    write_results("memory", {"rows": rows})


def _parts(parts: dict[str, int]) -> str:
    return f"{amount(parts['peak'], 'B')} (weights {amount(parts['weights'], 'B')})"


if __name__ == "__main__":
    main()
