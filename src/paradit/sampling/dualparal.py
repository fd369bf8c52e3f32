"""Sampler of the method `dualparal`: a queue of frame blocks, with the model's layers divided among ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from torch import Tensor

from paradit.config.errors import InputError
from paradit.config.methods.blocks import BlocksRequest, in_blocks
from paradit.config.requests import latent_shape
from paradit.distributed.world import World
from paradit.models.protocol import Prompt
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.block_sampler import Begun, BlockSampler
from paradit.sampling.block_state import QueueState, shared_state
from paradit.sampling.layer_split import LayerShare, divide_layers, measure_layers
from paradit.sampling.sampler import Work
from paradit.scheduling.block_queue import BlockQueue
from paradit.scheduling.layer_pipeline import PipelineGrid


class QueueSampler(BlockSampler):
    """Sampler that denoises a queue of frame blocks on the ranks of a layer pipeline (`BlockPipeline`)."""

    def divide(self, work: Work, world: World, grid: PipelineGrid) -> LayerShare:
        model, request, costs = work.model, in_blocks(work.request), None
        if world.rank == 0:
            _, _, height, width = latent_shape(request, model.spec)
            window = (request.queue(model.spec).window_frames, height, width)
            conditions = model.conditions(request, work.conditions)
            costs = measure_layers(model, window, work.prompts[0], conditions)
        return divide_layers(model, world, costs, grid)

    def finished(self, queue: BlockQueue, round: int) -> int:
        return queue.finished(round)

    def check(self, work: Work, queue: BlockQueue, state: QueueState) -> None:
        """Refuse a state that lacks some layers' or heads' cached keys, or a branch's. Raises InputError.

        The first rank saves the keys that it has; other ranks save none.
        """
        if queue.left_source != "cache" or not queue.context_frames:
            return
        spec = work.model.spec
        sizes = spec.transformers[0]
        every = set(product(range(sizes.num_layers), range(sizes.num_attention_heads)))
        kept = state.left_features
        # Each branch that all experts need; ranks share out branches only if all need both.
        branches = range(min(work.request.branches(spec)))
        needed = {*product((block - 1 for block in queue.active(state.round) if block), branches)}
        whole = all({(layer, head) for layer, _, head in one} == every for one in kept.values())
        if not whole or needed - kept.keys():
            raise InputError("it has the keys of one rank's layers only (left_context cache)")

    def fresh(self, begun: Begun) -> Iterator[Tensor]:
        work, (_, _, *size) = begun.work, latent_shape(begun.request, begun.work.model.spec)
        prompts, later = by_block(begun.request, work)
        goes_on = True

        def save(state: QueueState) -> None:
            # `BlockPipeline` asks `wanted` for the decision, not `save`.
            nonlocal goes_on
            assert begun.save is not None
            goes_on = begun.save(state)

        return BlockPipeline(
            work.model,
            begun.queue,
            prompts,
            begun.noise,
            (size[0], size[1]),
            request=begun.request,
            conditions=work.conditions,
            progress=work.progress,
            later=later,
            share=work.share,
            wanted=lambda: goes_on and work.wanted(),
            state=_mine(begun),
        ).blocks(save if begun.save else None)

    def is_open(self, queue: BlockQueue, round: int) -> bool:
        return round == queue.open_rounds

    def after_round(self, work: Work, queue: BlockQueue, state: QueueState) -> bool:
        blocks = queue.active(state.round - 1)
        count = None if work.request.endless else queue.num_blocks
        levels = state.round - queue.lag * blocks[-1], state.round - queue.lag * blocks[0]
        work.progress.queue(blocks[0] + 1, count, levels, queue.num_steps)
        return super().after_round(work, queue, state)


def _mine(begun: Begun) -> QueueState | None:
    """Return the state that this rank resumes from: without frame blocks, except on the first rank."""
    if not begun.round or begun.queue.left_source != "cache":
        return begun.state or (QueueState(round=begun.round) if begun.round else None)
    keys = replace(begun.state, blocks={}) if begun.state else None
    shared = shared_state(keys, begun.work.predictor, begun.work.model.device)  # by all ranks together
    return begun.state or shared


def by_block(request: BlocksRequest, work: Work) -> tuple[tuple[Prompt, ...], list[tuple[int, Prompt]]]:
    """Return the encoded prompts with which a long video starts, and the later ones that replace the first.

    They are two values: a tuple of the prompt and, with guidance, the negative prompt; and a list of later
    prompts, each with the index, counted from 0, of the first frame block that uses it.
    """
    spec = work.model.spec
    of_text = dict(zip(request.texts(spec), work.prompts, strict=True))
    later = [
        (block, of_text[text])
        for block, (_, text) in zip(request.prompt_blocks(spec), request.prompts_at, strict=True)
        if block is not None
    ]
    return work.prompts[: request.num_branches(spec)], later


SAMPLER = QueueSampler()
