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

from paradit.attention.base import Attend, Kernel, Site
from paradit.attention.local_attention import sdpa
from paradit.attention.window import Features, Kept, Neighbour
from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import Context as TextContext
from paradit.models.protocol import Prompt, Scheduler, Tokens, Transformer, VideoModel
from paradit.parallel.run_blocks import run, through_blocks
from paradit.progress import Progress
from paradit.sampling.block_state import HeadFeatures, HeldBlock, QueueState
from paradit.sampling.block_window import Sharing, Window, timestep_of
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
        self._given = model.conditions(request, conditions)
        self._prompts = self._given.prompts(prompts)
        later = [(block, self._given.prompts((prompt,))[0]) for block, prompt in later]
        self._request, self._scales = request, request.guidance_scales(model.spec)
        self._kernel, self._later, self._wanted = kernel, later, wanted
        self._progress = progress or Progress()
        self._grid, self._rank = (share.grid, share.world.rank) if share else (PipelineGrid(), 0)
        self._sharing = share.sharing if share else Sharing()
        self._branches = self._grid.branches(self._rank, len(prompts))
        self._timesteps = model.scheduler(request).timesteps
        self._experts = experts_of(model, request, self._timesteps)
        # An expert cannot read the keys of another one's layers: at these steps they are computed again.
        self._queue = replace(queue, expert_steps=changes_of(self._experts))
        self._contexts: dict[tuple[int, int], TextContext] = {}
        """Prompts as the transformer blocks read them, by (expert's index, `id` of the encoded prompt)."""
        self._windows: dict[tuple[int, Context, Context], Window] = {}
        self._first_round = state.round if state else 0
        self._right: list[Features] = [{} for _ in prompts]
        """For each guidance branch, cached keys and values of the first frames of the frame block whose step
        was computed last. The block to its left takes its step next, and reads them."""
        self._left: dict[tuple[int, int], Features] = {}
        """Cached keys and values of each frame block's last frames after its latest step, by (frame block,
        guidance branch). The block to its right reads them."""
        self._held: dict[int, HeldBlock] = {}
        """Frame blocks that are being denoised or are still read by a neighbour, by number; only on the first
        rank."""
        if state is not None:
            self._restore(state)
        self._round = self._first_round
        """Index of the latest round that was begun; in a round, every frame block in the queue takes one
        step."""
        # The store keeps the keys of earlier videos, so each video needs a key of its own.
        word = f"end of video {next(share.videos)} of {share.world.ranks}" if share else ""
        self._early_stop = EarlyStop(share.world if share else None, word, self._queue)
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
        left_features: deque[dict[tuple[int, int], Features]] = deque()
        """Copies of `_left` after the rounds that are computed and are still to be saved, oldest first."""
        rounds = self._first_round, self._early_stop.goes_on
        for operation in program(self._queue, self._grid.num_slices, self._rank, *rounds):
            step = operation.step
            is_due = self._ends_round(step) and (step.round + 1) % save_every == 0
            save_now = save if is_due else None
            if isinstance(operation, Compute):
                if step.round > self._round:
                    self._end_if_unwanted()
                self._compute(step)
                if save_now:  # copied now: later steps change it before the first rank can save
                    left_features.append({key: dict(part) for key, part in self._left.items()})
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
                save_now(self._state(step.round + 1, left_features.popleft()))
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
                attend = self._attend(step, branch, window, tokens.layout.num_replicated)
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
            self._forget_left(step)

    def _tokens(
        self, step: BlockStep, transformer: Transformer, window: Window
    ) -> Iterator[tuple[int, Tokens]]:
        """Yield each guidance branch of this rank, with the tokens that enter the rank's layers."""
        contexts = self._contexts_of(self._experts[step.step], step.block)
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

    def _attend(self, step: BlockStep, branch: int, window: Window, num_replicated: int) -> Attend:
        """Return the attention function for a frame block's step, which reads and fills key/value caches.

        It reads keys and values that the neighbouring frame blocks cached, and caches those that they will
        read. branch: index of the guidance branch. window: tokens of the frame block and of the context
        frames that it attends to. num_replicated: number of further tokens, such as the text's, of which
        every rank holds a copy.
        """
        neighbours = []
        if step.left.source == "cache" and step.left.frames:
            neighbours.append(Neighbour(self._left[step.block - 1, branch], window.left, is_before=True))
        if step.right.source == "cache" and step.right.frames:
            neighbours.append(Neighbour(self._right[branch], window.right, is_before=False))
        keep = []
        start, stop = window.own.start, window.own.stop
        context = window.tokens * min(self._queue.context_frames, step.frames)
        # The block to the left reads these, in this round. The first block has none to its left.
        if context and step.block > 0:
            keep.append(Kept(self._right[branch], start, start + context))
        # The block to the right reads these, in later rounds. The last block has none to its right.
        if context and self._queue.left_source == "cache" and step.block + 1 != self._queue.num_blocks:
            features = self._left.setdefault((step.block, branch), {})
            keep.append(Kept(features, stop - context, stop))
        return window.attend(self._kernel, neighbours, keep, num_replicated)

    def _forget_left(self, step: BlockStep) -> None:
        if step.step == self._queue.num_steps - 1:  # no later step reads them
            for branch in range(len(self._prompts)):
                self._left.pop((step.block - 1, branch), None)

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

    def _contexts_of(self, expert: int, block: int) -> dict[int, TextContext]:
        """Return a frame block's encoded prompts, by the guidance branches of this rank that are computed.

        They have the form that the transformer blocks read. expert: index of the expert transformer, which
        may need fewer branches than another one. block: index of the frame block.
        """
        texts = list(self._prompts)
        for first, text in self._later:
            texts[0] = text if first <= block else texts[0]
        computed = self._request.branches(self._model.spec)[expert]
        return {
            branch: self._context(expert, texts[branch]) for branch in self._branches if branch < computed
        }

    @torch.no_grad()  # `PipelineLinks` also calls this, outside `blocks`
    def _context(self, expert: int, text: Prompt) -> TextContext:
        # An `id` is safe as a key, because this object keeps all of its prompts alive.
        key = expert, id(text)
        if key not in self._contexts:
            self._contexts[key] = self._model.experts[expert].context(*text)
        return self._contexts[key]

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
            for context in self._contexts_of(expert, step.block).values():
                layout = self._window(step).my_layout
                yield self._model.experts[expert].changing_shapes(context, layout)

    def predictions(self, place: int) -> Iterator[Shapes]:
        for step in self._steps():
            window = self._window(step)
            yield [(1, len(window.own_of(place)), prod(self._shape(1)) // window.tokens)]

    def _state(self, round: int, left: dict[tuple[int, int], Features]) -> QueueState:
        fresh, joined = self._fresh_scheduler, self._queue.joined(round)
        return QueueState(
            round=round,
            # The next round's blocks may have begun.
            blocks={number: held.state(fresh) for number, held in self._held.items() if number < joined},
            left_features={
                key: {
                    # By head of the whole model, so that another number of ranks can resume from the state.
                    (*site, head): (keys[:, :, index], values[:, :, index])
                    for site, (keys, values) in features.items()
                    for index, head in enumerate(self._heads)
                }
                for key, features in left.items()
            },
        )

    def _restore(self, state: QueueState) -> None:
        for number, block in state.blocks.items():
            self._held[number] = HeldBlock.of(block, self._model.scheduler(self._request))

        def joined(features: HeadFeatures, site: Site) -> tuple[Tensor, Tensor]:
            parts = (features[(*site.key, head)] for head in self._heads)
            keys, values = zip(*parts, strict=True)
            return torch.stack(keys, dim=2), torch.stack(values, dim=2)

        self._left = {
            (block, branch): {site.key: joined(features, site) for site in self._model.experts[0].sites}
            for (block, branch), features in state.left_features.items()
            if branch in self._branches
        }

    @property
    def _heads(self) -> range:
        """Range of the attention heads that this rank computes, in all layers that it holds."""
        return self._sharing.heads(self._model.experts[0].num_heads)

    @cached_property
    def _fresh_scheduler(self) -> Scheduler:
        return self._model.scheduler(self._request)
