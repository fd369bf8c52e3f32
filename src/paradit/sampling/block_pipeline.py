"""Denoising a long video block by block, as one rank of a layer pipeline (DualParal, arXiv 2505.21070).

Which block takes which step, what it reads, and when, says `scheduling`; here it is done. Approximate: a
frame sees its block and some neighbouring frames, at other noise levels, not the whole video. But what is
computed does not depend on how many ranks there are, nor on when messages arrive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from paradit.attention.local import sdpa
from paradit.attention.protocol import Attend, Kernel
from paradit.attention.rope import Rope
from paradit.attention.window import Features, Kept, Neighbour, windowed
from paradit.distributed.channel import Channel, Expected
from paradit.models.protocol import Prompt, Scheduler, Transformer, VideoModel
from paradit.progress import Progress
from paradit.sampling.block_state import BlockState, QueueState, restore_solver, solver_state
from paradit.sampling.forward import run, through_blocks
from paradit.sampling.guidance import guide
from paradit.sampling.layer_split import LayerShare
from paradit.sampling.noise import BlockNoise
from paradit.scheduling.block_queue import BlockQueue, BlockStep, Context
from paradit.scheduling.layer_pipeline import Collect, Compute, in_flight, program

HOP_DEPTH = 2
"""How many hidden states may be on their way to the next rank before this one waits."""

Save = Callable[[QueueState], None]


class BlockPipeline:
    """One rank of the pipeline, or all of it in one process. All ranks make it, with the same arguments."""

    def __init__(
        self,
        model: VideoModel,
        queue: BlockQueue,
        prompts: tuple[Prompt, ...],
        noise: BlockNoise,
        size: tuple[int, int],
        *,
        guidance_scales: tuple[float, ...],
        progress: Progress | None = None,
        share: LayerShare | None = None,
        kernel: Kernel = sdpa,
        state: QueueState | None = None,
    ) -> None:
        """prompts: the prompt and, for guidance, the negative prompt; one is computed after the other. size:
        (h, w) of the latents. guidance_scales: one for each of the model's experts. share: what
        `divide_layers` gave this rank; None for one process. state: what `save` got, to go on from there.
        """
        self._model, self._prompts, self._noise, self._size = model, prompts, noise, size
        self._scales, self._kernel = guidance_scales, kernel
        self._progress = progress or Progress()
        self._rank, self._num_ranks = (share.world.rank, share.world.size) if share else (0, 1)
        self._first_layer = share.layers.start if share else 0

        self._timesteps = model.scheduler(queue.num_steps).timesteps
        self._experts = [model.expert_at(timestep) for timestep in self._timesteps]
        changes = [
            step for step in range(1, queue.num_steps) if self._experts[step] != self._experts[step - 1]
        ]
        self._queue = replace(queue, expert_steps=tuple(changes))
        self._contexts: dict[int, list[Any]] = {}
        self._windows: dict[tuple[int, Context, Context], _Window] = {}
        self._first_round = state.round if state else 0

        self._right: list[Features] = [{} for _ in prompts]
        """By branch: of the first frames of the block that took its step last."""
        self._left: dict[tuple[int, int], Features] = {}
        """By (block, branch): of the block's last frames in its newest step."""
        self._held: dict[int, _Held] = {}
        """The first rank's blocks, by number."""
        if state is not None:
            self._restore(state)
        self._connect(share)

    @property
    def is_first(self) -> bool:
        return self._rank == 0

    @property
    def is_last(self) -> bool:
        return self._rank == self._num_ranks - 1

    @torch.no_grad()
    def blocks(self, save: Save | None = None, save_every: int = 1) -> Iterator[Tensor]:
        """The clean latents [1, C, F, h, w], fp32, of each block in order, on the first rank.

        Every rank goes through it; the others give none. save: called with this rank's state after every
        `save_every` rounds. Steps of blocks are told as stage "denoise". Raises FloatingPointError, on the
        first rank, where a block's latents become infinite or are no numbers.
        """
        steps_done = 0
        features: deque[dict[tuple[int, int], Features]] = deque()
        for operation in program(self._queue, self._num_ranks, self._rank, self._first_round):
            step = operation.step
            ends_round = step.block == self._queue.active(step.round)[0]
            saves = save is not None and ends_round and (step.round + 1) % save_every == 0
            if isinstance(operation, Compute):
                self._compute(step)
                if saves:  # what the first rank holds of this round is complete only later
                    features.append({key: dict(part) for key, part in self._left.items()})
            else:
                self._collect(step)
                steps_done += 1
                self._progress.step("denoise", steps_done)
                if step.step == self._queue.num_steps - 1:
                    yield self._held[step.block].latents
            if saves and isinstance(operation, Collect if self.is_first else Compute):
                assert save is not None
                save(self._state(step.round + 1, features.popleft()))
        self._to_next.close()
        self._to_first.close()

    def _compute(self, step: BlockStep) -> None:
        """Take a block-step through this rank's layers."""
        expert = self._experts[step.step]
        transformer, window = self._model.experts[expert], self._window(step)
        contexts = self._contexts_of(expert)
        latents = self._latents(step) if self.is_first else self._like_latents(step)
        timestep = self._model.model_timestep(self._timesteps[step.step], latents)
        embedded = None
        if self.is_first:
            # Once for all branches: they see the same tokens until they meet the text.
            embedded = transformer.embed(latents, timestep, contexts[0], window.layout)
        predictions = []
        for branch, context in enumerate(contexts):
            if embedded is not None:
                tokens = transformer.branch(embedded, context)
            else:
                changing = self._from_before.receive()
                tokens = transformer.resume(changing, timestep, context, window.layout)
            tokens = run(through_blocks(transformer, tokens, self._attend(step, branch, window)))
            if self.is_last:
                values = transformer.unpatchify(transformer.head(tokens), window.layout)
                predictions.append(values[:, :, step.left.computed :][:, :, : step.frames])
            else:
                for tensor in tokens.changing:
                    self._to_next.send(tensor)
        if self.is_last:
            self._to_first.send(guide(predictions, self._scales[expert]))
        self._forget_left(step)

    def _attend(self, step: BlockStep, branch: int, window: _Window) -> Attend:
        """Attention to what the step reads of its neighbours; what they will read is kept."""
        neighbours = []
        if step.left.source == "cache" and step.left.frames:
            neighbours.append(Neighbour(self._left[step.block - 1, branch], window.left))
        if step.right.source == "cache" and step.right.frames:
            neighbours.append(Neighbour(self._right[branch], window.right))
        keep = []
        start, stop = window.own
        context = window.tokens * min(self._queue.context_frames, step.frames)
        if context and step.block > 0:
            keep.append(Kept(self._right[branch], start, start + context))
        if context and self._queue.left_source == "cache" and step.block + 1 != self._queue.num_blocks:
            features = self._left.setdefault((step.block, branch), {})
            keep.append(Kept(features, stop - context, stop))
        return windowed(self._kernel, neighbours, keep)

    def _forget_left(self, step: BlockStep) -> None:
        if step.step == self._queue.num_steps - 1:  # nobody else reads them
            for branch in range(len(self._prompts)):
                self._left.pop((step.block - 1, branch), None)

    def _latents(self, step: BlockStep) -> Tensor:
        """What goes into the transformer: the block's latents, and those of its neighbours, if any."""
        if step.step == 0:
            noise = self._noise.block(step.block)[:, :, : step.frames].to(self._model.device)
            scheduler = self._model.scheduler(self._queue.num_steps)
            self._held[step.block] = _Held(level=0, latents=noise, before=None, scheduler=scheduler)
        parts = [self._held[step.block].at(step.step)]
        if step.left.computed:
            left = self._held[step.block - 1].at(step.left.level)
            parts.insert(0, left[:, :, -step.left.frames :])
        if step.right.computed:
            parts.append(self._held[step.block + 1].at(step.right.level)[:, :, : step.right.frames])
        return torch.cat(parts, dim=2).to(self._model.dtype)

    def _like_latents(self, step: BlockStep) -> Tensor:
        """Of the shape of a step's latents, for a rank that has none."""
        return torch.empty(self._shape(step.computed_frames), device="meta")

    def _collect(self, step: BlockStep) -> None:
        """Take a block's solver step with its prediction, which has come or is waited for."""
        held = self._held[step.block]
        if self.is_last:
            prediction = self._to_first.receive((), self._model.dtype, self._model.device)
        else:
            (prediction,) = self._predictions.receive()
        (latents,) = held.scheduler.step(
            prediction, self._timesteps[step.step], held.at(step.step), return_dict=False
        )
        if not latents.isfinite().all():
            raise FloatingPointError(
                f"the latents of block {step.block + 1} are not finite after step {step.step + 1}"
            )
        held.latents, held.before, held.level = latents, held.latents, step.step + 1
        if held.level == self._queue.num_steps:  # its right neighbour is the last that reads a block
            self._held.pop(step.block - 1, None)

    def _window(self, step: BlockStep) -> _Window:
        # Steps of the same frames share one, whatever their level.
        key = step.frames, replace(step.left, level=0), replace(step.right, level=0)
        if key not in self._windows:
            self._windows[key] = _Window(self._model.experts[0], step, self._size)
        return self._windows[key]

    @torch.no_grad()  # also when the first receives are posted
    def _contexts_of(self, expert: int) -> list[Any]:
        if expert not in self._contexts:
            transformer = self._model.experts[expert]
            self._contexts[expert] = [transformer.context(*prompt) for prompt in self._prompts]
        return self._contexts[expert]

    def _shape(self, frames: int) -> tuple[int, ...]:
        return (1, self._model.spec.vae.z_dim, frames, *self._size)

    def _connect(self, share: LayerShare | None) -> None:
        """The channels to the next rank and back to the first, and what will come over them."""
        dtype, last = self._model.dtype, self._num_ranks - 1
        world, back = (share.world, share.way_back) if share else (None, None)
        self._to_next = Channel(world, self._rank, [] if self.is_last else [self._rank + 1], HOP_DEPTH)
        self._to_first = Channel(back, last, [0], in_flight(self._num_ranks))
        if world and not self.is_first:
            self._from_before = Expected(world, self._rank - 1, self._hop_shapes(), dtype)
        if back and self.is_first and not self.is_last:
            shapes = ([self._shape(step.frames)] for step in self._queue.steps(self._first_round))
            self._predictions = Expected(back, last, shapes, dtype)

    def _hop_shapes(self) -> Iterator[tuple[tuple[int, ...], ...]]:
        """Of what comes from the rank before, for each branch of each block-step."""
        for step in self._queue.steps(self._first_round):
            expert = self._experts[step.step]
            for context in self._contexts_of(expert):
                layout = self._window(step).layout
                yield self._model.experts[expert].changing_shapes(context, layout)

    def _state(self, round: int, left: dict[tuple[int, int], Features]) -> QueueState:
        fresh = self._fresh_scheduler
        return QueueState(
            round=round,
            blocks={
                number: BlockState(
                    level=held.level,
                    latents=held.latents,
                    before=held.before,
                    solver=solver_state(held.scheduler, fresh),
                )
                for number, held in self._held.items()
                if number < round  # the next round's blocks may have begun
            },
            left_features={
                key: {layer + self._first_layer: part for layer, part in features.items()}
                for key, features in left.items()
            },
        )

    def _restore(self, state: QueueState) -> None:
        for number, block in state.blocks.items():
            scheduler = restore_solver(self._model.scheduler(self._queue.num_steps), block.solver)
            self._held[number] = _Held(block.level, block.latents, block.before, scheduler)
        held = range(self._first_layer, self._first_layer + len(self._model.experts[0].blocks))
        self._left = {
            key: {layer - self._first_layer: features[layer] for layer in held}
            for key, features in state.left_features.items()
        }

    @cached_property
    def _fresh_scheduler(self) -> Scheduler:
        return self._model.scheduler(self._queue.num_steps)


@dataclass
class _Held:
    """A block on the first rank: its latents, at two levels, and its own solver."""

    level: int
    latents: Tensor
    before: Tensor | None
    scheduler: Scheduler

    def at(self, level: int) -> Tensor:
        """The latents after so many steps."""
        latents = {self.level: self.latents, self.level - 1: self.before}.get(level)
        assert latents is not None, f"latents at level {level} are asked for, there are those of {self.level}"
        return latents


class _Window:
    """Where the tokens of a block-step are. Positions begin at the window's first frame."""

    def __init__(self, transformer: Transformer, step: BlockStep, size: tuple[int, int]) -> None:
        whole: Rope = transformer.layout((step.window_frames, *size)).rope
        self.tokens = len(whole.positions) // step.window_frames
        """Of a latent frame."""
        frames_before = step.left.frames - step.left.computed
        start, count = frames_before * self.tokens, step.computed_frames * self.tokens
        self.layout = replace(
            transformer.layout((step.computed_frames, *size)), rope=whole.shard(start, start + count)
        )
        """Of the tokens that are computed."""
        self.left = whole.shard(0, start)
        """Where the tokens are whose keys are read, before those that are computed."""
        self.right = whole.shard(start + count, len(whole.positions))
        """And after them."""
        own = step.left.computed * self.tokens
        self.own = own, own + step.frames * self.tokens
        """The block's own, among the tokens that are computed."""
