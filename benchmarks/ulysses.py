"""Compare our sequence parallelism on two ranks with diffusers' and cache-dit's Ulysses.

    python benchmarks/ulysses.py --links loopback 1gbit 200mbit --repeats 9

A step is both guidance branches of one denoising step. Every system has two processes of its own with one
thread each, which stay alive. Their turns alternate, so that a drift of the machine favours none. A limited
link joins two network namespaces (needs root and `ip`); loopback is within the machine. cache-dit is measured
if it is installed. diffusers' own parallelism does not start on a CPU as shipped: two functions of
`torch.accelerator` are patched for it and for cache-dit, which does not affect the measured time.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from links import Host, loopback, two_hosts
from machine import write_results
from pairs import Pair, join, serve
from random_models import random_wan

SYSTEMS = ("ours", "diffusers", "cache-dit")
MODELS = {
    # name: (heads, head dim, layers, feed-forward), latent (frames, height, width)
    "6 layers x 512, 2,000 tokens": ((8, 64, 6, 2048), (5, 40, 40)),
    "6 layers x 216, 648 tokens": ((6, 36, 6, 864), (9, 12, 24)),
}
TEXT_TOKENS = 512


def random_model(name: str) -> tuple[WanTransformer3DModel, Tensor, list[Tensor]]:
    return random_wan(*MODELS[name], TEXT_TOKENS)


@torch.no_grad()
def worker(system: str, name: str, rank: int, address: str) -> None:
    """Run one rank of a system, which computes one step per turn."""
    join(rank, address)
    module, latents, prompts = random_model(name)
    timestep = torch.tensor([500])
    expected = [module(latents, timestep, prompt, return_dict=False)[0] for prompt in prompts]
    make = {"ours": ours, "diffusers": diffusers_ulysses, "cache-dit": cache_dit_ulysses}[system]
    step = make(module, latents, timestep, prompts)
    difference = max(float((a - b).abs().max()) for a, b in zip(step(), expected, strict=True))
    serve(difference, lambda _: step())


def ours(module, latents, timestep, prompts):  # type: ignore[no-untyped-def]
    from paradit.config.placement import Placement
    from paradit.distributed.world import current_world
    from paradit.engine.predictors import sequence_parallel
    from paradit.models.wan.transformer import WanTransformer

    world = current_world(torch.device("cpu"))
    assert world is not None
    placement = Placement(ranks=2, attention="ulysses")
    seam, predictor = (
        WanTransformer(module),
        sequence_parallel(world, placement, module.config.num_attention_heads),
    )
    contexts, layout = (
        predictor.contexts(seam, [(p,) for p in prompts]),
        seam.layout(tuple(latents.shape[2:])),
    )
    return lambda: predictor.predict(seam, latents, timestep, contexts, layout)


def as_if_there_were_an_accelerator() -> None:
    torch.accelerator.device_count = lambda: 1
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("cpu")


def own_forward(module, latents, timestep, prompts):  # type: ignore[no-untyped-def]
    return lambda: [module(latents, timestep, prompt, return_dict=False)[0] for prompt in prompts]


def diffusers_ulysses(module, latents, timestep, prompts):  # type: ignore[no-untyped-def]
    from diffusers import ContextParallelConfig

    as_if_there_were_an_accelerator()
    module.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    return own_forward(module, latents, timestep, prompts)


def cache_dit_ulysses(module, latents, timestep, prompts):  # type: ignore[no-untyped-def]
    import cache_dit

    as_if_there_were_an_accelerator()
    cache_dit.enable_cache(module, parallelism_config=cache_dit.ParallelismConfig(ulysses_size=2))
    return own_forward(module, latents, timestep, prompts)


@contextmanager
def pairs(name: str, hosts: list[Host]) -> Iterator[dict[str, Pair]]:
    systems = [s for s in SYSTEMS if s != "cache-dit" or importlib.util.find_spec("cache_dit")]
    with ExitStack() as stack:
        started = {}
        for index, system in enumerate(systems):
            started[system] = Pair(__file__, [system, name], hosts, port=29600 + index)
            stack.callback(started[system].close)
        yield started


def measure(name: str, hosts: list[Host], repeats: int) -> dict[str, object]:
    with pairs(name, hosts) as started:
        seconds: dict[str, list[float]] = {system: [] for system in started}
        for turn in range(repeats):
            # The order alternates, so that a drift of the machine's speed favours no variant.
            for system in started if turn % 2 else reversed(started):
                seconds[system].append(started[system].take()["seconds"])
        return {
            "model": name,
            "repeats": repeats,
            "seconds": {system: median(times) for system, times in seconds.items()},
            "ours_over": {
                system: median(a / b for a, b in zip(seconds["ours"], times, strict=True))
                for system, times in seconds.items()
                if system != "ours"
            },
            "largest_difference": {system: max(pair.ready) for system, pair in started.items()},
        }


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        system, name, rank, address = sys.argv[2:]
        worker(system, name, int(rank), address)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--links", nargs="+", default=["loopback", "1gbit", "200mbit"])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    rows = []
    for link in args.links:
        with loopback() if link == "loopback" else two_hosts(link) as hosts:
            for name in MODELS:
                row = {"link": link, **measure(name, hosts, args.repeats)}
                rows.append(row)
                ratios = ", ".join(f"{ratio:.3f} of {s}" for s, ratio in row["ours_over"].items())  # type: ignore[attr-defined]
                print(f"{link:10} {name:30} ours: {ratios}", flush=True)
    write_results("ulysses", {"rows": rows})


if __name__ == "__main__":
    main()
