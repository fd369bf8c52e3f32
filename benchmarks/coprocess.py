"""Measure how much of a denoising step is saved if an idle decode rank helps with the attention.

    python benchmarks/coprocess.py --repeats 7

Two processes run with one thread each: one denoises (a Wan transformer with random weights, both guidance
branches), and the other holds no tokens and helps. Steps without help, with the share that is chosen from
measurements, and with other fixed shares take turns; the figures are medians. A share of attention that takes
A seconds alone could save share x A; the gain is the time saved, divided by that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from machine import write_results
from paradit.attention.local_attention import sdpa
from paradit.attention.measured import MeasuredKernel
from paradit.attention.registry import Choice
from paradit.distributed.mesh import Mesh
from paradit.distributed.timing import now
from paradit.distributed.world import World
from paradit.models.wan.transformer import WanTransformer
from paradit.parallel.coprocess import Helped, Helper
from paradit.parallel.coprocess_message import Message
from paradit.parallel.sequence_parallel import SequenceParallel
from paradit.testing import run_world
from random_models import random_wan

HEADS, HEAD_DIM, FFN = 8, 64, 2048
LAYERS = 4
SHAPES = {"1,280 tokens": (5, 32, 32), "2,304 tokens": (9, 32, 32)}
FORMS = {
    "ulysses": Choice.of("ulysses"),
    "pipesp": Choice.of("pipesp", chunks=4),
    "interleave": Choice.of("ulysses", interleave=True),
}
SHARES = (0.15, 0.3)


class Turns:
    """Plan of how much attention the helper, an idle decode rank, computes in the next step.

    The benchmark sets it through `work`.
    """

    def __init__(self) -> None:
        self.work: int | None = None
        """Number of query rows that the helper computes in the next step; None: the number chosen from
        measurements."""
        self.helped: Helped | None = None

    def __call__(self, step: Message, idle: tuple[int, ...]) -> Sequence[int]:
        assert self.helped is not None
        if not idle or self.work is not None:
            return [self.work or 0] if idle else [0]
        return self.helped._works.get((step, (0,)), [-1])


def rank(world: World, shape: tuple[int, int, int], choice: Choice, repeats: int) -> dict[str, Any]:
    union = world.part([0, 1], own_group=True)
    predictor = world.part([0])
    assert union is not None
    if predictor is None:
        Helper(union, 1, choices=[choice]).until_latents()
        return {}
    turns = Turns()
    helped = turns.helped = Helped(predictor, union, choices=[choice], plan=turns)
    module, latents, embeds = random_wan((HEADS, HEAD_DIM, LAYERS, FFN), shape, 32)
    transformer = WanTransformer(module)
    together = SequenceParallel(Mesh(predictor), [choice], sdpa, helped)
    contexts = together.contexts(transformer, [(part,) for part in embeds])
    layout = transformer.layout(shape)
    tokens = shape[0] * shape[1] // 2 * shape[2] // 2
    rows = HEADS * tokens

    def step(work: int | None) -> float:
        turns.work = work
        began = now(world.device)
        with torch.no_grad():
            together.predict(transformer, latents, torch.tensor([500]), contexts, layout)
        return now(world.device) - began

    while not helped._works:  # until the helper is ready, and its share has been chosen
        step(None)
    ((chosen,),) = helped._works.values()
    wanted = {"alone": 0, "measured": chosen, **{f"share {share}": int(share * rows) for share in SHARES}}
    taken: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(repeats + 1):
        for name, work in wanted.items():
            taken[name].append(step(work))
    helped.close()
    like = torch.empty(2, tokens, HEADS, HEAD_DIM, device="meta")
    attention = LAYERS * MeasuredKernel(sdpa, world.device).seconds(like, like)
    # The first turn is a warm-up.
    seconds = {name: median(each[1:]) for name, each in taken.items()}
    return {
        "shares": {name: work / rows for name, work in wanted.items()},
        "seconds": seconds,
        "attention": attention,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    rows = []
    for shape_name, shape in SHAPES.items():
        for form_name, form in FORMS.items():
            found, _ = run_world(rank, 2, shape, form, args.repeats, timeout=600)
            alone = found["seconds"]["alone"]
            found["gain"] = {
                name: (alone - seconds) / (found["shares"][name] * found["attention"])
                for name, seconds in found["seconds"].items()
                if found["shares"][name]
            }
            rows.append({"shape": shape_name, "form": form_name, **found})
            part = found["attention"] / alone
            print(f"{shape_name}, {form_name}: attention is {part:.2f} of a step alone", flush=True)
            for name, gain in found["gain"].items():
                ratio = found["seconds"][name] / alone
                share = found["shares"][name]
                print(f"  {name:12} share {share:.2f}: {ratio:.2f} of alone, {gain:.2f} of what it allows")
    write_results("coprocess", {"repeats": args.repeats, "layers": LAYERS, "rows": rows})


if __name__ == "__main__":
    main()
