"""Sequence parallelism on two ranks: ours against diffusers' and cache-dit's Ulysses, on the same model.

    python benchmarks/ulysses.py --links loopback 1gbit 200mbit --repeats 9

A step is both guidance branches of one denoising step. Every system has two processes of its own with one
thread each, which stay alive; their turns alternate, so that a drift of the machine favours none. A limited
link joins two network namespaces (needs root and `ip`); loopback is the same machine. cache-dit is measured
where it is installed. diffusers' own parallelism does not start on a CPU as shipped: two functions of
`torch.accelerator` are replaced for it and for cache-dit, which changes nothing of what is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel
from torch import Tensor

from links import Host, loopback, two_hosts
from machine import write_results

SYSTEMS = ("ours", "diffusers", "cache-dit")
MODELS = {
    # name: heads, head dim, layers, feed-forward, latent (frames, height, width)
    "6 layers x 512, 2,000 tokens": (8, 64, 6, 2048, (5, 40, 40)),
    "6 layers x 216, 648 tokens": (6, 36, 6, 864, (9, 12, 24)),
}
TEXT_TOKENS, TEXT_DIM = 512, 64


def random_model(name: str) -> tuple[WanTransformer3DModel, Tensor, list[Tensor]]:
    """The transformer, latents, and two prompts' embeddings: the same in every process."""
    heads, head_dim, layers, ffn, latent_shape = MODELS[name]
    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        num_layers=layers,
        ffn_dim=ffn,
        text_dim=TEXT_DIM,
        rope_max_seq_len=64,
    )
    latents = torch.randn(1, 16, *latent_shape)
    return module.eval(), latents, [torch.randn(1, TEXT_TOKENS, TEXT_DIM) for _ in range(2)]


@torch.no_grad()
def worker(system: str, name: str, rank: int, address: str) -> None:
    """One rank: says `ready`, then for every line on stdin takes a step and says its seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=2)
    module, latents, prompts = random_model(name)
    timestep = torch.tensor([500])
    expected = [module(latents, timestep, prompt, return_dict=False)[0] for prompt in prompts]
    step = {"ours": ours, "diffusers": diffusers_ulysses, "cache-dit": cache_dit_ulysses}[system](
        module, latents, timestep, prompts
    )
    difference = max(float((a - b).abs().max()) for a, b in zip(step(), expected, strict=True))
    print(json.dumps({"ready": difference}), flush=True)
    for _ in sys.stdin:
        dist.barrier()
        start = time.perf_counter()
        step()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def ours(module, latents, timestep, prompts):  # type: ignore[no-untyped-def]
    from paradit.distributed.mesh import Mesh
    from paradit.distributed.world import current_world
    from paradit.models.wan.transformer import WanTransformer
    from paradit.sampling.together import Together

    world = current_world(torch.device("cpu"))
    assert world is not None
    seam, team = WanTransformer(module), Together(Mesh(world))
    contexts, layout = team.contexts(seam, prompts), seam.layout(tuple(latents.shape[2:]))
    return lambda: team.predict(seam, latents, timestep, contexts, layout)


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


class Pair:
    """The two processes of one system."""

    def __init__(self, system: str, name: str, hosts: list[Host], port: int) -> None:
        self.system = system
        address = f"{hosts[0].address}:{port}"
        self.ranks = [
            subprocess.Popen(
                [*host.prefix, sys.executable, __file__, "--worker", system, name, str(rank), address],
                env=host.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank, host in enumerate(hosts)
        ]
        self.difference = max(self._hear("ready"))

    def step(self) -> float:
        """Seconds of the slower rank."""
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        return max(self._hear("seconds"))

    def _hear(self, key: str) -> list[float]:
        said = []
        for rank in self.ranks:
            assert rank.stdout is not None
            for line in rank.stdout:
                if line.startswith(f'{{"{key}"'):
                    said.append(float(json.loads(line)[key]))
                    break
            else:
                raise RuntimeError(f"{self.system}: a rank ended")
        return said

    def close(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.wait()


@contextmanager
def pairs(name: str, hosts: list[Host]) -> Iterator[list[Pair]]:
    systems = [s for s in SYSTEMS if s != "cache-dit" or importlib.util.find_spec("cache_dit")]
    with ExitStack() as stack:
        started = []
        for index, system in enumerate(systems):
            pair = Pair(system, name, hosts, port=29600 + index)
            stack.callback(pair.close)
            started.append(pair)
        yield started


def measure(name: str, hosts: list[Host], repeats: int) -> dict[str, object]:
    with pairs(name, hosts) as started:
        seconds: dict[str, list[float]] = {pair.system: [] for pair in started}
        for turn in range(repeats):
            for pair in started if turn % 2 else reversed(started):
                seconds[pair.system].append(pair.step())
        return {
            "model": name,
            "repeats": repeats,
            "seconds": {system: median(times) for system, times in seconds.items()},
            "ours_over": {
                system: median(a / b for a, b in zip(seconds["ours"], times, strict=True))
                for system, times in seconds.items()
                if system != "ours"
            },
            "largest_difference": {pair.system: pair.difference for pair in started},
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
