"""DualParal's algorithm (arXiv 2505.21070) restated in plain loops, and compared with `BlockPipeline`.

The restatement follows the order of work of the authors' program, in one process: a list of blocks with their
latents, a pool of noise that is shuffled for each block, and one set of cached keys per layer, which each
block overwrites. It differs in two points: the first block is as long as the others, and each block's solver
gets a copy of the latents.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paradit.attention.local_attention import sdpa
from paradit.config.methods.method import resolve
from paradit.config.requests import Request
from paradit.models.common.seeded import seeded
from paradit.models.protocol import Prompt, VideoModel
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.noise import PooledNoise, initial_noise
from paradit.scheduling.block_queue import BlockQueue
from tiny import load_on_cpu, save_folder

OWN, CONTEXT, STEPS, BLOCKS, SEED = 4, 2, 5, 5, 7
"""Latent frames of a block, of the context on each side, and numbers of steps and blocks."""
SIZE = 4, 6
SCALE = 3.0
TOKENS = SIZE[0] * SIZE[1] // 4
"""Tokens of a latent frame."""


class Block:
    """A block in the queue: its latents, which every step replaces, and its own solver."""

    def __init__(self, latents: Tensor, scheduler: Any) -> None:
        self.latents, self.scheduler, self.steps_taken = latents, scheduler, 0


def queue_of_blocks(model: VideoModel, prompts: list[Prompt], lag: int) -> list[Tensor]:
    """Return the latents of all blocks; a new one is pushed in every `lag`-th iteration."""
    request = resolve(Request(prompt="any", num_inference_steps=STEPS), model.spec)
    template = initial_noise((1, model.spec.vae.z_dim, OWN + CONTEXT, *SIZE), SEED, torch.device("cpu"))
    blocks: list[Block] = []
    head, iteration = 0, 0
    while head < BLOCKS:
        if iteration % lag == 0 and len(blocks) < BLOCKS:
            order = torch.randperm(OWN, generator=seeded("order", SEED, len(blocks)))
            template = torch.cat([template[:, :, OWN:], template[:, :, :OWN][:, :, order]], dim=2)
            blocks.append(Block(template[:, :, CONTEXT:], model.scheduler(request)))
        cached: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # emptied in every iteration
        for number in reversed(range(head, len(blocks))):  # from the noisiest to the cleanest
            take_step(model, prompts, blocks[number], blocks[number - 1] if number else None, cached)
        while head < len(blocks) and blocks[head].steps_taken == STEPS:
            head += 1
        iteration += 1
    return [block.latents for block in blocks]


def take_step(
    model: VideoModel,
    prompts: list[Prompt],
    block: Block,
    left: Block | None,
    cached: dict[tuple[int, int], tuple[Tensor, Tensor]],
) -> None:
    """Take a block's next step: its left context goes through the layers with it, the right one is cached."""
    (transformer,) = model.experts
    timestep = block.scheduler.timesteps[block.steps_taken]
    context = [] if left is None else [left.latents[:, :, -CONTEXT:]]
    window = torch.cat([*context, block.latents], dim=2)
    seen = window.shape[2] + (CONTEXT if cached else 0)
    # Positions count from the window's first frame; queries have the first ones, cached keys the last.
    rope = transformer.layout((seen, *SIZE)).rope
    layout = transformer.layout((window.shape[2], *SIZE))
    predictions = []
    for branch, prompt in enumerate(prompts):
        text = transformer.context(*prompt)
        tokens = transformer.embed(window, model.model_timestep(timestep, window), text, layout)
        for number, layer in enumerate(transformer.blocks):
            value, key, query = layer.project(tokens)
            right = cached.get((branch, number))
            keys, values = key, value
            if right is not None:
                keys, values = torch.cat([key, right[0]], dim=1), torch.cat([value, right[1]], dim=1)
            own = slice(-OWN * TOKENS, (CONTEXT - OWN) * TOKENS)  # the block's own first frames
            cached[branch, number] = key[:, own], value[:, own]
            queries = rope.shard(0, query.shape[1]).apply(query)
            tokens = layer.finish(tokens, sdpa(queries, rope.apply(keys), values))
        own_tokens = transformer.head(tokens)[:, -OWN * TOKENS :]
        predictions.append(transformer.unpatchify(own_tokens, transformer.layout((OWN, *SIZE))))
    wanted, unwanted = predictions
    guided = unwanted + SCALE * (wanted - unwanted)
    copy = block.latents.clone()  # the solver keeps it, and reads it in the next step
    (block.latents,) = block.scheduler.step(guided, timestep, copy, return_dict=False)
    block.steps_taken += 1


@pytest.mark.parametrize("lag", [1, 2, 4])
@torch.no_grad()
def test_equals_the_algorithm_restated(lag: int, tmp_path: Path) -> None:
    """With a lag of 1, the authors' program reads left contexts that are one step cleaner."""
    model = load_on_cpu(save_folder("wan21", tmp_path, layers=2))
    prompts = [model.encode_prompt("a red circle"), model.encode_prompt("blurry")]
    queue = BlockQueue(
        num_frames=OWN * BLOCKS,
        block_frames=OWN,
        context_frames=CONTEXT,
        num_steps=STEPS,
        lag=lag,
        left_level="one-cleaner",
    )
    request = resolve(Request(prompt="any", num_inference_steps=STEPS, guidance_scale=SCALE), model.spec)
    noise = PooledNoise((model.spec.vae.z_dim, *SIZE), SEED, OWN, CONTEXT)
    made = BlockPipeline(model, queue, tuple(prompts), noise, SIZE, request=request).blocks()
    for block, expected in zip(made, queue_of_blocks(model, prompts, lag), strict=True):
        torch.testing.assert_close(block, expected, rtol=0, atol=4e-6)
