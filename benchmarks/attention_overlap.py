"""How much of sequence parallelism's communication is hidden: two ranks, over links of limited rate.

    python benchmarks/attention_overlap.py --links 1gbit 500mbit 250mbit 125mbit --repeats 7

A turn is both guidance branches through all layers of a Wan transformer (project, attend, finish). Two
processes with one thread each, in two network namespaces joined by a link that `tbf` limits; set up and taken
down here, which needs root, `ip` and `tc`. All ways take turns within one run; medians.

serial: plain `ulysses`, both branches in one batch, receives posted first: our own best serial exchange.
computation: the same with nothing sent. communication: the same messages with nothing computed.
Overlap efficiency = (serial - ours) / (serial - max(computation, communication)).
cache-dit's Ulysses is measured where it is installed (it takes one branch after the other, with gloo's
all-to-all).
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
from diffusers import WanTransformer3DModel
from torch import Tensor

from links import Host, two_hosts
from machine import write_results
from pairs import Pair, join, serve
from paradit.distributed.transport import Transfer, Transport
from paradit.distributed.world import current_world
from paradit.models.wan.transformer import WanTransformer
from paradit.placement import Placement
from paradit.sampling.together import together
from random_wan import random_wan

HEADS, HEAD_DIM, LAYERS, FFN = 8, 64, 4, 1024
LATENT_SHAPE = (6, 32, 32)  # 1,536 tokens
TEXT_TOKENS = 32

WAYS = {
    "ulysses": Placement(ranks=2, attention="ulysses"),
    "pipesp-paper": Placement(ranks=2, attention="pipesp-paper"),
    "pipesp 2": Placement(ranks=2, attention="pipesp", chunks=2),
    "pipesp 4": Placement(ranks=2, attention="pipesp", chunks=4),
    "pipesp auto": Placement(ranks=2, attention="pipesp"),
    "interleave": Placement(ranks=2, attention="ulysses", interleave=True),
    "interleave, pipesp 2": Placement(ranks=2, attention="pipesp", chunks=2, interleave=True),
    "interleave, pipesp 4": Placement(ranks=2, attention="pipesp", chunks=4, interleave=True),
    "ring": Placement(ranks=2, attention="ring"),
    "ring, interleaved": Placement(ranks=2, attention="ring", interleave=True),
    "auto": Placement(ranks=2),
}
BOUNDS = ("computation", "communication")
PORT = 29700


def random_model() -> tuple[WanTransformer3DModel, Tensor, list[Tensor]]:
    return random_wan((HEADS, HEAD_DIM, LAYERS, FFN), LATENT_SHAPE, TEXT_TOKENS)


class Step:
    """A denoising step's predictions, in any of the ways."""

    def __init__(self) -> None:
        world = current_world(torch.device("cpu"))
        assert world is not None
        self.module, self.latents, self.prompts = random_model()
        self.each = [(prompt,) for prompt in self.prompts]
        self.timestep = torch.tensor([500])
        self.seam = WanTransformer(self.module)
        self.layout = self.seam.layout(LATENT_SHAPE)
        self.teams = {name: together(world, way, HEADS) for name, way in WAYS.items()}
        self.contexts = {name: team.contexts(self.seam, self.each) for name, team in self.teams.items()}
        self.transport = world.transport()

    def take(self, name: str) -> list[Tensor]:
        if name == "communication":
            return self.communicate()
        if name == "computation":
            with nothing_sent():
                return self.take("ulysses")
        return self.teams[name].predict(
            self.seam, self.latents, self.timestep, self.contexts[name], self.layout
        )

    def choose(self, name: str) -> str:
        """Take steps until it is known what is quickest."""
        (trial,) = self.teams[name].trials.values()
        while trial.best is None:
            self.take(name)
        return str(trial.best)

    def communicate(self) -> list[Tensor]:
        """Every layer's messages, packed already: three parts in, then one back."""
        branches, tokens = len(self.prompts), len(self.layout.rope.positions)
        rows = branches * (tokens // 2) * (HEADS // 2)  # of this rank's tokens, the other one's heads
        for _ in range(LAYERS):
            for parts in (3, 1):
                size = parts * rows * HEAD_DIM
                sizes = [0 if rank == self.transport.rank else size for rank in range(2)]
                self.transport.start([torch.empty(size) for size in sizes], sizes).wait()
        return []

    def expected(self) -> list[Tensor]:
        return [
            self.module(self.latents, self.timestep, prompt, return_dict=False)[0] for prompt in self.prompts
        ]


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
def worker(system: str, rank: int, address: str) -> None:
    join(rank, address)
    if system == "cache-dit":
        third_party()
        return
    step = Step()
    expected = step.expected()
    differences = {
        name: max(float((a - b).abs().max()) for a, b in zip(step.take(name), expected, strict=True))
        for name in WAYS
    }
    chosen = {name: step.choose(name) for name in ("auto", "pipesp auto")}
    serve({"differences": differences, "chosen": chosen}, step.take)


def third_party() -> None:
    import cache_dit

    from ulysses import as_if_there_were_an_accelerator

    as_if_there_were_an_accelerator()
    module, latents, prompts = random_model()
    cache_dit.enable_cache(module, parallelism_config=cache_dit.ParallelismConfig(ulysses_size=2))
    timestep = torch.tensor([500])
    serve(None, lambda _: [module(latents, timestep, prompt, return_dict=False)[0] for prompt in prompts])


def measure(link: str, hosts: list[Host], repeats: int) -> dict[str, Any]:
    with ExitStack() as stack:
        ours = Pair(__file__, ["ours"], hosts, PORT)
        stack.callback(ours.close)
        turns = [(name, ours) for name in (*WAYS, *BOUNDS)]
        if importlib.util.find_spec("cache_dit"):
            other = Pair(__file__, ["cache-dit"], hosts, PORT + 1)
            stack.callback(other.close)
            turns.append(("cache-dit", other))
        taken: dict[str, list[dict[str, float]]] = {name: [] for name, _ in turns}
        for turn in range(repeats + 1):
            for name, pair in turns if turn % 2 else reversed(turns):
                took = pair.take(name)
                if turn:  # the first warms up
                    taken[name].append(took)
    seconds = {name: median(took["seconds"] for took in took_all) for name, took_all in taken.items()}
    bound = max(seconds[name] for name in BOUNDS)
    hidden = seconds["ulysses"] - bound
    return {
        "link": link,
        "ratio": seconds["communication"] / seconds["computation"],
        "seconds": seconds,
        "efficiency": {name: (seconds["ulysses"] - seconds[name]) / hidden for name in WAYS},
        "communication_cpu_seconds": median(took["cpu_seconds"] for took in taken["communication"]),
        "chosen": ours.ready[0]["chosen"],
        "largest_difference": ours.ready[0]["differences"],
    }


def show(row: dict[str, Any]) -> None:
    seconds = row["seconds"]
    print(f"\n{row['link']}: communication / computation {row['ratio']:.2f}, "
          f"of it CPU {row['communication_cpu_seconds'] / seconds['communication']:.2f}")  # fmt: skip
    for name, took in sorted(seconds.items(), key=lambda item: item[1]):
        efficiency = f"{row['efficiency'][name]:6.2f}" if name in row["efficiency"] else "      "
        print(f"  {name:22} {1000 * took:7.0f} ms  {took / seconds['ulysses']:5.2f} of serial {efficiency}")
    print(f"  chosen: {row['chosen']}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        system, rank, address = sys.argv[2:]
        worker(system, int(rank), address)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--links", nargs="+", default=["1gbit", "500mbit", "250mbit", "125mbit"])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for link in args.links:
        with two_hosts(link) as hosts:
            rows.append(measure(link, hosts, args.repeats))
            show(rows[-1])
    write_results("attention_overlap", {"repeats": args.repeats, "rows": rows})


if __name__ == "__main__":
    main()
