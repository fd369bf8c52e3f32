"""Measure how much communication sequence parallelism hides, on two ranks and links of limited rate.

    python benchmarks/attention_overlap.py --links 800mbit 400mbit 200mbit 100mbit --repeats 5

A turn is a whole denoising step of a Wan or an Open-Sora-Plan transformer, with both guidance branches, or of
a HunyuanVideo transformer, which has one branch. Open-Sora-Plan's has the published number of layers, 32, of
which 28 are sparse, and so is compared with `skiparse`, too. Two processes with one thread and one core each
run in two network namespaces, joined by a link that `tbf` limits. The script sets them up and removes them,
which needs root, `ip` and `tc`. All variants take turns within one run; the figures are medians.

The variant "serial" is plain `ulysses` with both branches in one batch and receives posted first, which is
our own best exchange without overlap. "computation" is the same with nothing sent, and "communication" the
same messages with nothing computed. Overlap efficiency = (serial - ours) / (serial - max(computation,
communication)). cache-dit's Ulysses for Wan is measured, too, if it is installed; it computes one branch
after the other, with gloo's all-to-all.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from links import Host, two_hosts
from machine import write_results
from pairs import Pair, join, serve
from paradit.config.placement import Placement
from paradit.distributed.transport import Transfer, Transport
from paradit.distributed.world import current_world
from paradit.engine.predictors import sequence_parallel
from paradit.models.hunyuan_video.transformer import HunyuanVideoTransformer
from paradit.models.open_sora_plan.transformer import OpenSoraPlanTransformer
from paradit.models.wan.transformer import WanTransformer
from paradit.parallel.predictor import LocalPredictor
from paradit.sampling.guidance import guide
from random_models import random_hunyuan_video, random_open_sora_plan, random_wan

HEADS, HEAD_DIM, LAYERS, FFN = 8, 64, 5, 2048
HUNYUAN_VIDEO_LAYERS = 2, 3  # double and single blocks
OPEN_SORA_PLAN = 8, 48, 32  # heads, head dim (a multiple of 6), layers
LATENT_SHAPES = {
    "wan": (9, 32, 32),  # 2,304 tokens
    "hunyuan_video": (9, 32, 32),
    "open_sora_plan": (5, 24, 24),  # 720 tokens, because it has many layers
}
TEXT_TOKENS = 32
MODELS = tuple(LATENT_SHAPES)
SEAMS = {
    "wan": WanTransformer,
    "hunyuan_video": HunyuanVideoTransformer,
    "open_sora_plan": OpenSoraPlanTransformer,
}
GUIDANCE_SCALE = 5.0

WAYS = {
    "ulysses": Placement(ranks=2, attention="ulysses"),
    "pipesp-paper": Placement(ranks=2, attention="pipesp-paper"),
    "pipesp auto": Placement(ranks=2, attention="pipesp"),
    "interleave": Placement(ranks=2, attention="ulysses", interleave=True),
    "interleave, pipesp 2": Placement.of(ranks=2, attention="pipesp", chunks=2, interleave=True),
    "ring": Placement(ranks=2, attention="ring"),
    "ring, interleaved": Placement(ranks=2, attention="ring", interleave=True),
    "skiparse": Placement(ranks=2, attention="skiparse"),
    "skiparse, interleaved": Placement(ranks=2, attention="skiparse", interleave=True),
    "auto": Placement(ranks=2),
}
AUTO = ("auto", "pipesp auto")
BOUNDS = ("computation", "communication")
PORT = 29700


def ways(model: str) -> dict[str, Placement]:
    """Return the placements that suit a model.

    HunyuanVideo has no second guidance branch to interleave. Sparse layers take no ring, and `skiparse` takes
    nothing else.
    """
    sparse = model == "open_sora_plan"
    unsuited = {"ring"} if sparse else {"skiparse"}
    return {
        name: way
        for name, way in WAYS.items()
        if way.attention not in unsuited and not (model == "hunyuan_video" and way.interleave)
    }


def modules(model: str) -> tuple[Any, Tensor, list[tuple[Tensor, ...]]]:
    """Return a model's random transformer, its latents, and the prompt embeddings of each guidance branch."""
    if model == "wan":
        sizes = (HEADS, HEAD_DIM, LAYERS, FFN)
        module, latents, embeds = random_wan(sizes, LATENT_SHAPES[model], TEXT_TOKENS)
        return module, latents, [(part,) for part in embeds]
    if model == "open_sora_plan":
        return random_open_sora_plan(OPEN_SORA_PLAN, LATENT_SHAPES[model], TEXT_TOKENS)
    hunyuan = (HEADS, HEAD_DIM, *HUNYUAN_VIDEO_LAYERS)
    video, latents, prompt = random_hunyuan_video(hunyuan, LATENT_SHAPES[model], TEXT_TOKENS)
    return video, latents, [prompt]


class Step:
    """One rank's denoising step, computed by any of the placements or by only a part of one."""

    def __init__(self, model: str, ways: dict[str, Placement]) -> None:
        world = current_world(torch.device("cpu"))
        assert world is not None
        self.module, self.latents, self.prompts = modules(model)
        self.seam: Any = SEAMS[model](self.module)
        heads = self.seam.num_heads
        patterns = frozenset(site.pattern for site in self.seam.sites if site.pattern)
        self.timestep = torch.tensor([500])
        self.layout = self.seam.layout(LATENT_SHAPES[model])
        branches = len(self.prompts)
        self.predictors = {
            name: sequence_parallel(world, way, heads, branches, patterns=patterns)
            for name, way in ways.items()
        }
        self.contexts = {
            name: predictor.contexts(self.seam, self.prompts) for name, predictor in self.predictors.items()
        }
        self.transport = world.transport()

    def take(self, name: str) -> Tensor:
        """Take the step named `name` (a placement, "communication" or "computation"); return its latents."""
        if name == "communication":
            return self.communicate()
        if name == "computation":
            with nothing_sent():
                return self.take("ulysses")
        return self.after(
            self.predictors[name].predict(
                self.seam, self.latents, self.timestep, self.contexts[name], self.layout
            )
        )

    def after(self, predictions: list[Tensor]) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(1)
        prediction = guide(predictions, GUIDANCE_SCALE)
        (latents,) = scheduler.step(prediction, scheduler.timesteps[0], self.latents, return_dict=False)
        return latents

    def communicate(self) -> Tensor:
        """Exchange every layer's messages without computing: three packed tensors in, then one back."""
        branches, tokens = len(self.prompts), len(self.layout.rope.positions)
        depth = self.module.config["attention_head_dim"]
        rows = branches * (tokens // 2) * (self.seam.num_heads // 2)  # this rank's tokens, the other's heads
        for _ in self.seam.blocks:
            for parts in (3, 1):
                size = parts * rows * depth
                sizes = [0 if rank == self.transport.rank else size for rank in range(2)]
                self.transport.start([torch.empty(size) for size in sizes], sizes).wait()
        return self.latents

    def expected(self) -> Tensor:
        given = self.latents, self.timestep
        if isinstance(self.seam, OpenSoraPlanTransformer):  # its module has no forward
            alone = LocalPredictor()
            contexts = alone.contexts(self.seam, self.prompts)
            return self.after(alone.predict(self.seam, *given, contexts, self.layout))
        return self.after([self.module(*given, *prompt, return_dict=False)[0] for prompt in self.prompts])


@contextmanager
def nothing_sent() -> Iterator[None]:
    def start(_: Transport, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        return Transfer([], [outgoing[0].new_empty(size) for size in sizes], [])

    kept = Transport.start
    Transport.start = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        Transport.start = kept  # type: ignore[method-assign]


@torch.no_grad()
def worker(system: str, model: str, rank: int, address: str) -> None:
    join(rank, address)
    if system == "cache-dit":
        third_party()
        return
    step = Step(model, ways(model))
    expected = step.expected()
    differences = {name: float((step.take(name) - expected).abs().max()) for name in ways(model)}
    chosen = {name: [str(form) for form in step.predictors[name].chosen.values()] for name in AUTO}
    serve({"differences": differences, "chosen": chosen}, step.take)


def third_party() -> None:
    import cache_dit

    from ulysses import as_if_there_were_an_accelerator

    as_if_there_were_an_accelerator()
    step = Step("wan", {})
    cache_dit.enable_cache(step.module, parallelism_config=cache_dit.ParallelismConfig(ulysses_size=2))
    serve(None, lambda _: step.expected())


def measure(link: str, model: str, hosts: list[Host], repeats: int) -> dict[str, Any]:
    names = list(ways(model))
    with ExitStack() as stack:
        ours = Pair(__file__, ["ours", model], hosts, PORT)
        stack.callback(ours.close)
        turns = [(name, ours) for name in (*names, *BOUNDS)]
        if model == "wan" and importlib.util.find_spec("cache_dit"):
            other = Pair(__file__, ["cache-dit", model], hosts, PORT + 1)
            stack.callback(other.close)
            turns.append(("cache-dit", other))
        taken: dict[str, list[dict[str, float]]] = {name: [] for name, _ in turns}
        for turn in range(repeats + 1):
            # The order alternates, so that a drift of the machine's speed favours no variant.
            for name, pair in turns if turn % 2 else reversed(turns):
                took = pair.take(name)
                if turn:  # the first warms up
                    taken[name].append(took)
    seconds = {name: median(took["seconds"] for took in took_all) for name, took_all in taken.items()}
    bound = max(seconds[name] for name in BOUNDS)
    hidden = seconds["ulysses"] - bound
    return {
        "link": link,
        "model": model,
        "ratio": seconds["communication"] / seconds["computation"],
        "seconds": seconds,
        "efficiency": {name: (seconds["ulysses"] - seconds[name]) / hidden for name in names},
        "communication_cpu_seconds": median(took["cpu_seconds"] for took in taken["communication"]),
        "chosen": ours.ready[0]["chosen"],
        "largest_difference": ours.ready[0]["differences"],
    }


def show(row: dict[str, Any]) -> None:
    seconds = row["seconds"]
    print(f"\n{row['model']}, {row['link']}: communication / computation {row['ratio']:.2f}, "
          f"of it CPU {row['communication_cpu_seconds'] / seconds['communication']:.2f}")  # fmt: skip
    for name, took in sorted(seconds.items(), key=lambda item: item[1]):
        efficiency = f"{row['efficiency'][name]:6.2f}" if name in row["efficiency"] else "      "
        print(f"  {name:22} {1000 * took:7.0f} ms  {took / seconds['ulysses']:5.2f} of serial {efficiency}")
    print(f"  chosen: {row['chosen']}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        system, model, rank, address = sys.argv[2:]
        worker(system, model, int(rank), address)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--links", nargs="+", default=["800mbit", "400mbit", "200mbit", "100mbit"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for link in args.links:
        for model in args.models:
            with two_hosts(link) as hosts:
                rows.append(measure(link, model, hosts, args.repeats))
                show(rows[-1])
    some = [] if set(args.models) == set(MODELS) else args.models
    write_results("_".join(["attention_overlap", *some]), {"repeats": args.repeats, "rows": rows})


if __name__ == "__main__":
    main()
