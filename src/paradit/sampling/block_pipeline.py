"""Denoising of a long video on one rank of a layer pipeline, one frame block at a time (DualParal).

The method is from arXiv 2505.21070. `scheduling` decides when each frame block takes each denoising step, and
which frames of its neighbours it reads; this module carries that out. The method is approximate: a frame
attends to its own block and to some neighbouring frames, at other noise levels, not to the whole video. The
results depend neither on the number of ranks nor on the timing of messages.

Block-steps (`b.s`: frame block b takes step s) on two layer slices; in a round, every block in the queue
takes one step, the noisiest first:

    round          |  0  |    1    |      2      |        3        |
    first slice    | 0.0 | 1.0 0.1 | 2.0 1.1 0.2 | 3.0 2.1 1.2 0.3 | ...
    last slice             0.0 1.0   0.1 2.0 1.1   0.2 3.0 2.1 1.2   ...

One block-step, `_compute` on every rank, then `_collect` on the first one:

    latents of the block, with frames of its neighbours
        |  embed, layers of the first slice
        v
    hidden states  ->  layers of the next slice  ->  ...  ->  layers of the last slice, head
                                                                  |
    latents one step on  <-  solver step  <-  prediction  <-------+
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from math import prod

import torch
from torch import Tensor

from paradit.attention.base import Kernel
from paradit.attention.local_attention import sdpa
from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import Prompt, Scheduler, Tokens, Transformer, VideoModel
from paradit.parallel.run_blocks import run, through_blocks
from paradit.progress import Progress
from paradit.sampling.block_prompts import BlockPrompts
from paradit.sampling.block_state import HeldBlock, QueueState
from paradit.sampling.block_window import Sharing, Window, timestep_of
from paradit.sampling.border_features import BorderFeatures, LastFrames
from paradit.sampling.early_stop import UNWANTED, EarlyStop
from paradit.sampling.experts import experts_of
from paradit.sampling.guidance import guide
from paradit.sampling.layer_split import LayerShare
from paradit.sampling.noise import BlockNoise
from paradit.sampling.pipeline_links import PipelineLinks, Shapes
from paradit.sampling.solver import solver_step
from paradit.scheduling.block_queue import BlockQueue, BlockStep, Context, changes_of
from paradit.scheduling.layer_pipeline import Collect, Compute, PipelineGrid, program
from paradit.trace.spans import STEP, span

Save = Callable[[QueueState], object]


class BlockPipeline:
    """Denoising of one long video on one rank of a layer pipeline, or in a single process.

    All ranks create one for each video, with the same arguments except `share` and `state`, which differ from
    rank to rank.
    """

    def __init__(
        self,
        model: VideoModel,
        queue: BlockQueue,
        prompts: tuple[Prompt, ...],
        noise: BlockNoise,
        size: tuple[int, int],
        *,
        request: ResolvedRequest,
        conditions: tuple[Tensor, ...] = (),
        progress: Progress | None = None,
        later: Sequence[tuple[int, Prompt]] = (),
        share: LayerShare | None = None,
        kernel: Kernel = sdpa,
        state: QueueState | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare the denoising of one video.

        prompts: the prompt and, with guidance, the negative prompt. If each guidance branch does not have
        ranks of its own, the branches are computed one after the other. size: (h, w) of the latents.
        request: the request, for its steps and its guidance. conditions: the request's encoded pictures.
        later: pairs of a frame block's index, counted from 0, and the prompt that replaces the first one from
        that block on. share: this rank's part in the pipeline, as `divide_layers` returned it; None for one
        process. state: a state from which to resume, which `save` of `blocks` received earlier. wanted:
        function that returns whether the rest of the video is still wanted; it is called on the first rank,
        in every round and after every frame block.
        """
        self._model, self._noise, self._size = model, noise, size
        self._request, self._scales = request, request.guidance_scales(model.spec)
        self._given = model.conditions(request, conditions)
        self._kernel, self._wanted = kernel, wanted
        self._progress = progress or Progress()
        self._grid, self._rank = (share.grid, share.world.rank) if share else (PipelineGrid(), 0)
        self._sharing = share.sharing if share else Sharing()
        self._timesteps = model.scheduler(request).timesteps
        self._experts = experts_of(model, request, self._timesteps)
        # An expert cannot read the keys of another one's layers: at these steps they are computed again.
        self._queue = replace(queue, expert_steps=changes_of(self._experts))
        branches = self._grid.branches(self._rank, len(prompts))
        self._prompts = BlockPrompts(model, request, self._given, prompts, later=later, branches=branches)
        heads = self._sharing.heads(model.experts[0].num_heads)
        self._borders = BorderFeatures(self._queue, heads, branches)
        self._windows: dict[tuple[int, Context, Context], Window] = {}
        self._held: dict[int, HeldBlock] = {}
        """Frame blocks that are being denoised or are still read by a neighbour, by number; only on the first
        rank."""
        self._round = self._first_round = state.round if state else 0
        """Index of the latest round that was begun; in a round, every frame block in the queue takes one
        step."""
        if state is not None:
            self._restore(state)
        self._early_stop = EarlyStop(share, self._queue)
        # Last, because it posts the first receives, whose shapes this object's methods compute.
        self._links = PipelineLinks(share, self, model.dtype, model.device)

    @torch.no_grad()
    def blocks(self, save: Save | None = None, save_every: int = 1) -> Iterator[Tensor]:
        """Yield the denoised latents [1, C, F, h, w], fp32, of each frame block in order, on the first rank.

        Every rank iterates over this generator; on ranks except the first, it yields nothing. save: function
        that is called with this rank's state after every `save_every` rounds. In a round, every frame block
        in the queue takes one step. Steps of frame blocks are reported as stage "denoise".

        Raises FloatingPointError if a frame block's latents become non-finite (inf or NaN), and Unwanted if
        the rest of the video is no longer wanted. Both are raised on all ranks, except on those that have
        already finished.
        """
        # Steps taken before a resume count as done.
        steps_done = sum(len(self._queue.active(round)) for round in range(self._first_round))
        self._progress.resume("denoise", steps_done)
        last_frames: deque[LastFrames] = deque()
        """Cached features after the rounds that are computed and are still to be saved, oldest first."""
        rounds = self._first_round, self._early_stop.goes_on
        for operation in program(self._queue, self._grid.num_slices, self._rank, *rounds):
            step = operation.step
            is_due = self._ends_round(step) and (step.round + 1) % save_every == 0
            save_now = save if is_due else None
            if isinstance(operation, Compute):
                if step.round > self._round:
                    self._end_if_unwanted()
                self._compute(step)
                if save_now:  # copied now: later steps change them before the first rank can save
                    last_frames.append(self._borders.last_frames())
            else:
                self._collect(step)
                # If the video ends early, predictions that are on their way are still received, so that no
                # message is left over; what they contain is not used.
                if self._early_stop.reason:
                    continue
                steps_done += 1
                self._progress.step("denoise", steps_done)
                if step.step == self._queue.num_steps - 1:
                    yield self._given.end(self._held[step.block].latents, self._queue.range_of(step.block))
                    self._end_if_unwanted()
            # The first rank has the round's latents only once it has collected their predictions. The other
            # ranks save nothing but caches, which are complete once they have computed the round.
            if save_now and isinstance(operation, Collect if self._links.is_leader else Compute):
                save_now(self._state(step.round + 1, last_frames.popleft()))
        self._links.close()
        self._early_stop.check()

    def _ends_round(self, step: BlockStep) -> bool:
        """Return whether a step is its round's last: that of the least noisy block, at the queue's head."""
        return step.block == self._queue.active(step.round)[0]

    def _end_if_unwanted(self) -> None:
        if self._links.is_leader and not self._early_stop.reason and not self._wanted():
            self._early_stop.request(UNWANTED, self._round)

    def _compute(self, step: BlockStep) -> None:
        """Run one step of a frame block through this rank's layers, for each of this rank's branches."""
        self._round = step.round
        expert, window, links = self._experts[step.step], self._window(step), self._links
        transformer = self._model.experts[expert]
        about = {"block": step.block + 1, "step": step.step + 1}
        with span(f"block {about['block']} step {about['step']}", STEP, **about):
            predictions = []
            for branch, tokens in self._tokens(step, transformer, window):
                of_neighbours = self._borders.neighbours(step, branch, window)
                kept = self._borders.kept(step, branch, window)
                attend = window.attend(self._kernel, of_neighbours, kept, tokens.layout.num_replicated)
                tokens = run(through_blocks(transformer.blocks, tokens, attend, step.step))  # noqa: PLW2901
                if links.is_last:
                    # Only the block's own tokens are sent back: predictions for the context's frames are not
                    # used.
                    own, first = window.own_of(self._sharing.place), window.mine.start
                    predictions.append(transformer.head(tokens)[:, own.start - first : own.stop - first])
                else:
                    links.hand_on(tokens.changing)
            if links.is_last:
                # If the branches have ranks of their own, there is only one prediction here, and `guide`
                # returns it unchanged; the first rank guides then (`_collect`).
                links.send_back(guide(predictions, self._scales[expert]))
            self._borders.forget(step)

    def _tokens(
        self, step: BlockStep, transformer: Transformer, window: Window
    ) -> Iterator[tuple[int, Tokens]]:
        """Yield each guidance branch of this rank, with the tokens that enter the rank's layers."""
        contexts = self._prompts.at(step.block, self._experts[step.step])
        latents = self._latents(step)
        frames = self._queue.computed_of(step)
        timestep = timestep_of(step, self._queue, self._timesteps)
        timestep = self._given.model_timestep(timestep, latents, frames)
        if not self._links.is_first:
            layout = window.my_layout
            for branch, context in contexts.items():
                yield branch, transformer.resume(self._links.handed_on(), timestep, context, layout)
            return
        # Embed once: all branches have the same tokens until they meet the text.
        first, joined = next(iter(contexts.values())), self._given.model_input(latents, frames)
        embedded = transformer.embed(joined, timestep, first, window.layout)
        for branch, context in contexts.items():
            yield branch, transformer.branch(embedded, context).shard(window.mine.start, window.mine.stop)

    def _latents(self, step: BlockStep) -> Tensor:
        """Return the latents that one step of a frame block reads: its own and neighbouring frames'.

        Neighbouring frames whose keys and values are read from a cache are left out. On ranks that do not
        embed latents, the tensor has a shape but no values (device "meta").
        """
        if not self._links.is_first:
            return torch.empty(self._shape(step.computed_frames), device="meta")
        if not self._links.is_leader:
            return self._links.latents()
        if step.step == 0:
            # The last block of a video may have fewer frames than the others.
            noise = self._noise.block(step.block)[:, :, : step.frames].to(self._model.device)
            scheduler = self._model.scheduler(self._request)
            self._held[step.block] = HeldBlock(level=0, latents=noise, before=None, scheduler=scheduler)
        parts = [self._held[step.block].at(step.step)]
        if step.left.computed:
            left = self._held[step.block - 1].at(step.left.level)
            parts.insert(0, left[:, :, -step.left.frames :])
        if step.right.computed:
            parts.append(self._held[step.block + 1].at(step.right.level)[:, :, : step.right.frames])
        latents = torch.cat(parts, dim=2).to(self._model.dtype)
        self._links.share_latents(latents)
        return latents

    def _collect(self, step: BlockStep) -> None:
        """Receive the prediction for one step of a frame block, and take the scheduler's step with it."""
        held, expert = self._held[step.block], self._experts[step.step]
        # If one rank computes all branches, the prediction is guided already and `guide` returns it
        # unchanged.
        values = guide(self._links.predictions(), self._scales[expert])
        prediction = self._model.experts[expert].unpatchify(values, self._window(step).own_layout)
        timestep, generator = self._timesteps[step.step], self._noise.step(step.block, step.step)
        latents = solver_step(held.scheduler, prediction, timestep, held.at(step.step), generator)
        # An early end is requested only once; the rounds that follow may not be finite either.
        if not latents.isfinite().all() and not self._early_stop.reason:
            reason = f"the latents of block {step.block + 1} are not finite after step {step.step + 1}"
            self._early_stop.request(reason, self._round)
        held.latents, held.before, held.level = latents, held.latents, step.step + 1
        if held.level == self._queue.num_steps:  # the last reader of the block before is done
            self._held.pop(step.block - 1, None)

    def _window(self, step: BlockStep) -> Window:
        # Steps with the same numbers of frames share a window, whatever their noise level.
        key = step.frames, replace(step.left, level=0), replace(step.right, level=0)
        if key not in self._windows:
            # Experts differ only in their weights, so the first one's layout serves all.
            self._windows[key] = Window(self._model.experts[0], step, self._size, self._sharing)
        return self._windows[key]

    def _shape(self, frames: int) -> tuple[int, ...]:
        return (1, self._model.spec.vae.z_dim, frames, *self._size)

    def _steps(self) -> Iterator[BlockStep]:
        """Yield the denoising steps of all frame blocks, in the order in which ranks exchange their messages.

        The iterator ends when the video ends, even if that is early.
        """
        steps = self._queue.steps(self._first_round)
        return takewhile(lambda step: self._early_stop.goes_on(step.round), steps)

    def latents(self) -> Iterator[Shapes]:
        """Yield the shape of the latents that this rank receives for each step of a frame block."""
        return ([self._shape(step.computed_frames)] for step in self._steps())

    def hops(self) -> Iterator[Shapes]:
        for step in self._steps():
            expert = self._experts[step.step]
            for context in self._prompts.at(step.block, expert).values():
                layout = self._window(step).my_layout
                yield self._model.experts[expert].changing_shapes(context, layout)

    def predictions(self, place: int) -> Iterator[Shapes]:
        for step in self._steps():
            window = self._window(step)
            yield [(1, len(window.own_of(place)), prod(self._shape(1)) // window.tokens)]

    def _state(self, round: int, last_frames: LastFrames) -> QueueState:
        fresh, joined = self._fresh_scheduler, self._queue.joined(round)
        return QueueState(
            round=round,
            # The next round's blocks may have begun.
            blocks={number: held.state(fresh) for number, held in self._held.items() if number < joined},
            left_features=self._borders.by_head(last_frames),
        )

    def _restore(self, state: QueueState) -> None:
        for number, block in state.blocks.items():
            self._held[number] = HeldBlock.of(block, self._model.scheduler(self._request))
        self._borders.restore(state.left_features, self._model.experts[0].sites)

    @cached_property
    def _fresh_scheduler(self) -> Scheduler:
        return self._model.scheduler(self._request)
