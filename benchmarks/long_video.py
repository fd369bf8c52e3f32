"""Measure long videos in frame blocks: how close two ranks come to the schedule, and what blocks save.

    python benchmarks/long_video.py speed     # about five minutes, with nothing else running
    python benchmarks/long_video.py bytes
    python benchmarks/long_video.py memory

speed: a random Wan on two ranks of one thread each; all variants take turns within one run. Figures are
medians, and ratios within each turn. The bound is the schedule's (`layer_pipeline.duration`): the time of one
step of a block on one rank while the other rank is as busy, divided in proportion to the measured layers.
bytes: what each rank sends, and how far the latents are from those of one process, on 2 and 4 ranks. memory:
peak memory of the command line and its time to the first frame, with the bundled model. Each part leaves the
other parts' results in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from machine import RESULTS, write_results
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, ResolvedRequest
from paradit.distributed.world import World
from paradit.engine.predictors import sequence_parallel
from paradit.models.families import loader
from paradit.models.folder import find_model
from paradit.models.protocol import VideoModel
from paradit.models.spec import read_spec
from paradit.models.wan.transformer import WanTransformer
from paradit.progress import Progress
from paradit.sampling import full_sequence
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.layer_split import LayerCosts, LayerShare, divide_layers, measure_layers
from paradit.sampling.noise import PooledNoise, step_generator
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import PipelineGrid, duration
from paradit.testing import run_world
from random_models import TEXT_DIM, random_wan

SIZES = (8, 32, 6, 1024)
"""Sizes of the random Wan: heads, head dim, layers, feed-forward."""
HEIGHT_WIDTH = (24, 24)
QUEUE = BlockQueue(num_frames=24, block_frames=4, context_frames=1, num_steps=4)
FRAMES = (129, 513, 2049)
Make = Callable[[], Any]


def random_model() -> VideoModel:
    """Return the bundled model with a random transformer of `SIZES`."""
    spec = read_spec(find_model("shapes"))
    model = loader(spec.pipeline_class)(spec, torch.float32, torch.device("cpu"))
    module, _, _ = random_wan(SIZES, (1, 2, 2), 8)
    model.experts = [WanTransformer(module.requires_grad_(False))]
    return model


def prompts() -> tuple[tuple[Tensor], ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple((torch.randn(1, 16, TEXT_DIM, generator=generator),) for _ in range(2))


def request_of(model: VideoModel) -> ResolvedRequest:
    return resolve(Request(prompt="any", num_inference_steps=QUEUE.num_steps, guidance_scale=3.0), model.spec)


def blocks_of(model: VideoModel, share: LayerShare | None) -> Iterator[Tensor]:
    noise = PooledNoise((16, *HEIGHT_WIDTH), 0, QUEUE.block_frames, QUEUE.context_frames)
    return BlockPipeline(
        model, QUEUE, prompts(), noise, HEIGHT_WIDTH, request=request_of(model), share=share
    ).blocks()


def in_blocks(model: VideoModel, share: LayerShare | None) -> Make:
    """Return a function that makes the video and returns the seconds until each block is denoised."""

    def make() -> list[float]:
        began = time.perf_counter()
        return [time.perf_counter() - began for _ in blocks_of(model, share)]

    return make


def in_full(model: VideoModel, world: World | None) -> Make:
    """Return a function that denoises the whole video at once."""
    heads = model.experts[0].num_heads
    predictor = (
        sequence_parallel(world, Placement(ranks=world.size, attention="ulysses"), heads) if world else None
    )
    noise = torch.randn(1, 16, QUEUE.num_frames or 1, *HEIGHT_WIDTH)

    def make() -> None:
        (_,) = full_sequence.denoise(
            model,
            noise,
            prompts(),
            request=request_of(model),
            noise=partial(step_generator, 0),
            progress=Progress(),
            predictor=predictor,
        )

    return make


def grids(num_ranks: int) -> dict[str, PipelineGrid]:
    found = {
        "stages": PipelineGrid(num_ranks),
        "tokens shared": PipelineGrid(1, 1, num_ranks),
        "branches apart": PipelineGrid(num_ranks // 2, 2),
    }
    if num_ranks == 4:
        found["stages of two that share tokens"] = PipelineGrid(2, 1, 2)
    return found


def taking_turns(world: World, repeats: int) -> dict[str, Any]:
    """Measure all variants in turns; return each one's seconds and block times by turn, for rank 0."""
    transport, model = world.transport(), random_model()
    costs = measure_layers(model, (QUEUE.window_frames, *HEIGHT_WIDTH), prompts()[0])
    ways: dict[str, tuple[Make, bool]] = {  # the flag: whether the other rank takes part or does the same
        "one rank": (in_blocks(model, None), False),
        "one rank each": (in_blocks(model, None), True),
    }
    shares = {}
    for name, grid in grids(world.size).items():
        own = random_model()
        shares[name] = divide_layers(own, world, costs if world.rank == 0 else None, grid)
        ways[name] = in_blocks(own, shares[name]), True
    ways["full, one rank"] = in_full(model, None), False
    ways["full, tokens shared"] = in_full(model, world), True
    taken: dict[str, list[float]] = {name: [] for name in ways}
    blocks: dict[str, list[list[float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, (make, both) in ways.items():
            # A barrier: both ranks begin at once, and the time ends when both are done.
            transport.all_gather(torch.zeros(1))
            began = time.perf_counter()
            times = make() if both or world.rank == 0 else None
            transport.all_gather(torch.zeros(1))
            if turn:  # the first turn is a warm-up
                taken[name].append(time.perf_counter() - began)
                blocks[name].append(times or [])
    layers = [int(n) for n in transport.all_gather(torch.tensor([len(shares["stages"].layers)]))]
    return {"seconds": taken, "blocks": blocks, "costs": costs, "layers": layers}


def bound(costs: LayerCosts, layers: list[int], seconds: float) -> float:
    """Return the shortest possible seconds on all ranks, if a single rank takes `seconds` for all steps."""
    assert QUEUE.num_blocks
    starts = [sum(layers[:rank]) for rank in range(len(layers))]
    ranks = [sum(costs.layers[start : start + n]) for start, n in zip(starts, layers, strict=True)]
    # Embedding runs once for both branches; each layer and the head run twice.
    ranks[0] += costs.embed / 2
    ranks[-1] += costs.head
    a_step = seconds / (QUEUE.num_blocks * QUEUE.num_steps)
    return duration(QUEUE, [a_step * cost / sum(ranks) for cost in ranks], parts=2)


def speed(repeats: int) -> dict[str, Any]:
    found, *_ = run_world(taking_turns, 2, repeats, timeout=590)
    seconds, costs, layers = found["seconds"], found["costs"], found["layers"]

    def ratio(a: str, b: str) -> float:
        return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    def steady(name: str) -> float:
        """Return the median seconds from one block to the next."""
        return median((times[-1] - times[0]) / (len(times) - 1) for times in found["blocks"][name])

    def efficiency(base: str) -> float:
        return median(
            bound(costs, layers, one) / two for one, two in zip(seconds[base], seconds["stages"], strict=True)
        )

    result = {
        "seconds": {name: median(each) for name, each in seconds.items()},
        "turns": seconds,
        "layers": layers,
        "over one rank": {name: ratio(name, "one rank") for name in grids(2)},
        "a block over one rank's": {name: steady(name) / steady("one rank") for name in grids(2)},
        "first block, of the whole": {
            name: median(times[0] / times[-1] for times in found["blocks"][name]) for name in grids(2)
        },
        "both busy over one": ratio("one rank each", "one rank"),
        "efficiency, against one rank beside another": efficiency("one rank each"),
        "efficiency, against one rank alone": efficiency("one rank"),
        "stages over tokens shared": ratio("stages", "tokens shared"),
        "window's saving: full over blocks, one rank": ratio("full, one rank", "one rank"),
        "parallel saving: full, one rank over two": ratio("full, one rank", "full, tokens shared"),
        "parallel saving: blocks, one rank over two": ratio("one rank", "stages"),
        "both: full on one rank over blocks on two": ratio("full, one rank", "stages"),
        "blocks over full, two ranks": ratio("stages", "full, tokens shared"),
    }
    for name, value in result.items():
        print(f"{name:48} {value if not isinstance(value, float) else round(value, 3)}", flush=True)
    return result


def counted(world: World, grid: PipelineGrid) -> tuple[list[Tensor], int]:
    """Make a video on a grid of ranks; return its blocks and the number of bytes that this rank sent."""
    model, sent = random_model(), 0
    share = divide_layers(model, world, None, grid)
    send = World.send

    def counting(self: World, tensor: Tensor, rank: int) -> Any:
        nonlocal sent
        sent += tensor.nbytes
        return send(self, tensor, rank)

    # Only `World.send` is counted here; the transport that shares tokens counts its own bytes.
    World.send = counting  # type: ignore[method-assign]
    blocks = list(blocks_of(model, share))
    World.send = send  # type: ignore[method-assign]
    return blocks, sent + (share.sharing.transport.bytes_sent if share.sharing.transport else 0)


def bytes_sent() -> list[dict[str, Any]]:
    rows = []
    ((expected, _),) = run_world(counted, 1, PipelineGrid(), timeout=590)
    for num_ranks in (2, 4):
        for name, grid in grids(num_ranks).items():
            made = run_world(counted, num_ranks, grid, timeout=590)
            apart = max((a - b).abs().max().item() for a, b in zip(made[0][0], expected, strict=True))
            steps = (QUEUE.num_blocks or 0) * QUEUE.num_steps
            sent = [each / steps for _, each in made]
            rows.append({"ranks": num_ranks, "way": name, "a step, by rank": sent, "apart": apart})
            megabytes = ", ".join(f"{each / 1e6:.2f}" for each in sent)
            print(f"{num_ranks} ranks, {name:32} MB a block-step: {megabytes}; apart {apart:.1e}", flush=True)
    return rows


def memory(frames: list[int], steps: int) -> dict[str, list[dict[str, Any]]]:
    """Measure peak memory with malloc's defaults, and with large tensors mapped outside malloc's heap.

    That heap is fragmented.
    """
    found = {}
    for name, settings in (("as it is", {}), ("large tensors mapped", {"MALLOC_MMAP_THRESHOLD_": "1048576"})):
        print(name)
        found[name] = memory_with(frames, steps, settings)
    return found


def memory_with(frames: list[int], steps: int, settings: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for count in frames:
        with tempfile.TemporaryDirectory() as folder:
            options = [
                "--num-frames",
                str(count),
                "--method",
                "dualparal",
                "--num-inference-steps",
                str(steps),
            ]
            command = [sys.executable, "-m", "paradit", "generate", "a red circle moving right", *options]
            row: dict[str, Any] = {"frames": count}
            began = None
            with subprocess.Popen(
                [*command, "-o", str(Path(folder) / "v.mp4"), "--json"],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | settings,
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    event, now = json.loads(line), time.monotonic()
                    if event["event"] == "stage_start" and event.get("stage") == "encode":
                        began = began or now
                    if event["event"] == "step" and event["stage"] == "decode":
                        row.setdefault("first", now - (began or now))
                        row["whole"] = now - (began or now)
                    if event["event"] == "result":
                        row["peak"] = event["peak_memory_bytes"]
        rows.append(row)
        print(f"{count} frames: peak {row['peak'] / 1e6:.1f} MB", end="")
        print(f" ({row['peak'] / rows[0]['peak']:.3f} of the first), ", end="")
        print(f"first frame after {row['first'] / row['whole']:.3f} of the time", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["speed", "bytes", "memory"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=list(FRAMES))
    parser.add_argument("--steps", type=int, default=4, help="of the memory runs")
    args = parser.parse_args()
    path = RESULTS / "long_video.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    parts = {name: before[name] for name in ("speed", "bytes", "memory") if name in before}
    if args.part == "speed":
        parts["speed"] = {"repeats": args.repeats, **speed(args.repeats)}
    elif args.part == "bytes":
        parts["bytes"] = bytes_sent()
    else:
        parts["memory"] = memory(args.frames, args.steps)
    write_results("long_video", parts)


if __name__ == "__main__":
    main()
