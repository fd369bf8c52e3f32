"""Compare the time of a denoising step by ParaDiT's split forward with that of diffusers' own.

Both take turns within one run.

A step is both guidance branches. The cases are a model folder or "shapes", at its default size, and a random
Wan of 6 layers, 8 heads of 64 and a feed-forward of 2048 at about 2,000 tokens. Both sides get the same
inputs and must return the same values.

    python benchmarks/seam.py --model shapes --repeats 30
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from machine import write_results
from paradit.attention.local_attention import local
from paradit.models.folder import find_model
from paradit.models.spec import read_spec
from paradit.models.wan.transformer import WanTransformer
from paradit.parallel.run_blocks import run, through_blocks

TEXT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    module: WanTransformer3DModel
    latent_shape: tuple[int, int, int]
    """Size of the latents: (frames, height, width)."""


def random_wan(layers: int = 6) -> Case:
    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=64,
        num_layers=layers,
        ffn_dim=2048,
        text_dim=512,
        rope_max_seq_len=64,
    )
    return Case(name=f"random, {layers} layers x 512", module=module, latent_shape=(5, 40, 40))


def folder_model(name: str) -> Case:
    folder = find_model(name)
    spec = read_spec(folder)
    defaults = spec.defaults
    _, *latent = spec.vae.latent_shape(defaults.num_frames, defaults.height, defaults.width)
    module = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    return Case(name=spec.name, module=module, latent_shape=(latent[0], latent[1], latent[2]))


@torch.no_grad()
def measure(case: Case, repeats: int) -> dict[str, object]:
    """Return the median seconds of a step for both sides, which alternate, and the median of their ratios."""
    module, seam = case.module.eval(), WanTransformer(case.module)
    latents = torch.randn(1, module.config.in_channels, *case.latent_shape)
    prompts = [torch.randn(1, TEXT_TOKENS, module.config.text_dim) for _ in range(2)]
    timestep = torch.tensor([500])
    contexts = [seam.context(prompt) for prompt in prompts]
    layout = seam.layout(case.latent_shape)

    def ours() -> list[Tensor]:
        tokens = seam.embed(latents, timestep, contexts[0], layout)
        branches = [replace(tokens, context=context) for context in contexts]
        done = [run(through_blocks(seam.blocks, branch, local())) for branch in branches]
        return [seam.unpatchify(seam.head(each), layout) for each in done]

    def theirs() -> list[Tensor]:
        return [module(latents, timestep, prompt, return_dict=False)[0] for prompt in prompts]

    equal = all(torch.equal(*pair) for pair in zip(ours(), theirs(), strict=True))
    seconds = list(take_turns(repeats, ours, theirs))
    mine, reference = zip(*seconds, strict=True)
    return {
        "case": case.name,
        "tokens": len(layout.rope.positions),
        "seam_seconds": median(mine),
        "diffusers_seconds": median(reference),
        "ratio": median(a / b for a, b in seconds),
        "ratio_of_fastest": min(mine) / min(reference),
        "repeats": repeats,
        "bit_for_bit": equal,
    }


def take_turns(repeats: int, *works: Callable[[], object]) -> Iterator[list[float]]:
    """Yield each work's seconds, `repeats` times; which goes first alternates, to cancel drift."""
    for turn in range(repeats):
        seconds = [0.0] * len(works)
        order = range(len(works))
        for index in order if turn % 2 else reversed(order):
            start = time.perf_counter()
            works[index]()
            seconds[index] = time.perf_counter() - start
        yield seconds


def table(rows: list[dict[str, object]]) -> Iterator[str]:
    yield f"{'case':24} {'tokens':>6} {'seam s':>9} {'diffusers s':>12} {'ratio':>6} {'fastest':>8}  equal"
    for row in rows:
        yield (
            f"{row['case']:24} {row['tokens']:6} {row['seam_seconds']:9.4f} {row['diffusers_seconds']:12.4f} "
            f"{row['ratio']:6.3f} {row['ratio_of_fastest']:8.3f}  {row['bit_for_bit']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="shapes", help="a bundled model's name or a folder; 'none' for none"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    cases = [] if arguments.model == "none" else [folder_model(arguments.model)]
    rows = [measure(case, arguments.repeats) for case in [*cases, random_wan()]]
    print("\n".join(table(rows)))
    write_results("seam", {"cases": rows})


if __name__ == "__main__":
    main()
