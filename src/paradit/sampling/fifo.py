"""Denoising of a long video along a diagonal: every latent frame has a noise level of its own.

The method is FIFO-Diffusion (arXiv 2405.11473). Its queue is that of `scheduling.block_queue`, with blocks of
one frame: in every round a frame of noise joins the queue, all frames take one step, and the least noisy
frame leaves.

In a round the frames go through the transformer in windows. In each window `block_frames` frames take a step,
and `context_frames` frames on both sides are only read; before the head of the queue, these are finished
frames (the paper's lookahead). All windows of a round read the latents from before the round. Windows are
counted from the head of the queue, so their borders fall on other frames in every round.

The method is approximate: as with frame blocks, a frame attends only to its window. Also, all frames of a
window differ in noise level, which a model must be trained for, or happen to tolerate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import Conditions, Prompt, Scheduler, VideoModel
from paradit.parallel.predictor import Predictor
from paradit.progress import Progress
from paradit.sampling.block_sampler import PredictorSampler
from paradit.sampling.block_state import BlockState, QueueState, restore_solver, solver_state
from paradit.sampling.early_stop import Unwanted
from paradit.sampling.guidance import guide
from paradit.sampling.noise import BlockNoise
from paradit.sampling.solver import solver_step
from paradit.scheduling.block_queue import BlockQueue


@dataclass
class _Frame:
    """A latent frame [1, C, 1, h, w] in the queue, and its own solver (scheduler)."""

    latents: Tensor
    scheduler: Scheduler
    level: int = 0
    """Number of denoising steps that the frame has taken."""


@torch.no_grad()
def blocks(
    model: VideoModel,
    queue: BlockQueue,
    prompts: tuple[Prompt, ...],
    noise: BlockNoise,
    *,
    request: ResolvedRequest,
    conditions: tuple[Tensor, ...] = (),
    predictor: Predictor,
    progress: Progress | None = None,
    state: QueueState | None = None,
    save: Callable[[QueueState], bool] | None = None,
) -> Iterator[Tensor]:
    """Yield each frame block's denoised latents [1, C, f, h, w], fp32, in order, on every rank.

    The model must have a single expert. request: the request, for its steps and its guidance. conditions: the
    request's encoded pictures. save: function that is called with the state after every round, in which each
    latent frame in the queue takes one step; it returns whether denoising continues. state: a state from
    which to resume, which `save` received earlier. Steps of frame blocks are reported as stage "denoise".

    Raises FloatingPointError if latents become non-finite (inf or NaN), and Unwanted if `save` returns False
    before the end. All ranks raise it.
    """
    frames = replace(queue, block_frames=1, context_frames=0)
    fresh, given = model.scheduler(request), model.conditions(request, conditions)
    predictions = _Predictions(model, predictor, request, given, prompts)
    held = _restored(model, request, state)
    begun, progress = state.round if state else 0, progress or Progress()
    done = sum(len(frames.active(round)) for round in range(begun))
    progress.resume("denoise", _in_blocks(queue, done))
    for round in frames.rounds(begun):
        active = frames.active(round)
        # A frame of noise joins the queue, unless the video's last frame has joined already.
        if active[-1] not in held:
            held[active[-1]] = _joining(model, queue, request, noise, active[-1])
        # No frame takes its step before all windows are predicted, so the order of the windows does not
        # matter.
        found: dict[int, Tensor] = {}
        for own, seen in windows(queue, active):
            found.update(predictions.of(own, seen, held))
        for frame, prediction in found.items():
            _step(held[frame], prediction, predictions.timesteps, frame, noise)
        done += len(active)
        progress.step("denoise", _in_blocks(queue, done))
        ready = frames.finished(round + 1)
        if block := _finished_block(queue, ready):
            yield given.end(torch.cat([held[frame].latents for frame in block], dim=2), block)
        # Finished frames are kept for as long as a window may read them, and until their block is complete.
        unread = min(ready - queue.context_frames, ready // queue.block_frames * queue.block_frames)
        held = {frame: what for frame, what in held.items() if frame >= unread}
        goes_on = not save or save(_state(round + 1, held, fresh))
        # All ranks follow the first one, because only it has checkpoints.
        if ready != queue.num_frames and not predictor.gather_number(int(goes_on))[0]:
            raise Unwanted


def _in_blocks(queue: BlockQueue, steps: int) -> int:
    """Return a number of steps of frames as one of steps of blocks, which progress counts."""
    blocks, frames = queue.num_blocks or 1, queue.num_frames or queue.block_frames
    return steps * blocks // frames


class _Predictions:
    """Predictions of a model for windows of frames that are at different noise levels."""

    def __init__(
        self,
        model: VideoModel,
        predictor: Predictor,
        request: ResolvedRequest,
        given: Conditions,
        prompts: tuple[Prompt, ...],
    ) -> None:
        """Prepare the prompts. given: effect of the request's pictures."""
        self._given, self._predictor, self._transformer = given, predictor, model.experts[0]
        (self._guidance_scale,) = request.guidance_scales(model.spec)
        timesteps = model.scheduler(request).timesteps
        self.timesteps = torch.cat([timesteps, timesteps.new_zeros(1)])
        """Timestep of each noise level; that of finished frames, the last one, is 0."""
        self._contexts = predictor.contexts(self._transformer, given.prompts(prompts))

    def of(self, own: range, seen: range, held: dict[int, _Frame]) -> Iterator[tuple[int, Tensor]]:
        """Return (frame number, prediction) for the frames in `own`, predicted from all frames in `seen`."""
        latents = torch.cat([held[frame].latents for frame in seen], dim=2)
        layout = self._transformer.layout(tuple(latents.shape[2:]))  # type: ignore[arg-type]
        levels = self.timesteps[[held[frame].level for frame in seen]]
        timestep = self._given.model_timestep(levels, latents, seen)
        joined = self._given.model_input(latents, seen)
        both = self._predictor.predict(self._transformer, joined, timestep, self._contexts, layout)
        parts = torch.split(guide(both, self._guidance_scale), 1, dim=2)
        return ((frame, part) for frame, part in zip(seen, parts, strict=True) if frame in own)


def _joining(
    model: VideoModel, queue: BlockQueue, request: ResolvedRequest, noise: BlockNoise, frame: int
) -> _Frame:
    """Return a frame of noise, with a new scheduler, that joins the queue."""
    block, place = divmod(frame, queue.block_frames)
    # A copy: a view would keep the whole block in memory.
    latents = noise.block(block)[:, :, place : place + 1].clone().to(model.device)
    return _Frame(latents, model.scheduler(request))


def _finished_block(queue: BlockQueue, ready: int) -> range | None:
    """Return the frames of the block that the last of `ready` finished frames completes; None if none is."""
    block, over = divmod(ready, queue.block_frames)
    if not ready or (over and ready != queue.num_frames):
        return None
    number = block if over else block - 1  # the video's last block may be shorter
    start = number * queue.block_frames
    return range(start, start + queue.frames_of(number))


def windows(queue: BlockQueue, active: range) -> Iterator[tuple[range, range]]:
    """Yield each window of a round, as a pair of ranges of latent frames.

    A window is a set of consecutive frames that go through the transformer together. The first range has the
    frames that take a step, the second all frames that are read. In a round, every latent frame in the queue
    takes one step.
    """
    for start in range(active.start, active.stop, queue.block_frames):
        own = range(start, min(start + queue.block_frames, active.stop))
        yield (
            own,
            range(max(0, start - queue.context_frames), min(own.stop + queue.context_frames, active.stop)),
        )


def finished(queue: BlockQueue, round: int) -> int:
    """Return the number of frame blocks that are fully denoised when round `round` of the queue begins.

    In a round, every latent frame in the queue takes one step. round: index of the round.
    """
    ready = replace(queue, block_frames=1, context_frames=0).finished(round)
    # The last block may be shorter than the others.
    return ready // queue.block_frames if ready != queue.num_frames else queue.num_blocks or 0


def _step(frame: _Frame, prediction: Tensor, timesteps: Tensor, number: int, noise: BlockNoise) -> None:
    generator = noise.step(number, frame.level)
    frame.latents = solver_step(frame.scheduler, prediction, timesteps[frame.level], frame.latents, generator)
    frame.level += 1
    if not frame.latents.isfinite().all():
        raise FloatingPointError(f"the latents of frame {number + 1} are not finite after step {frame.level}")


def _state(round: int, held: dict[int, _Frame], fresh: Scheduler) -> QueueState:
    kept = {
        number: BlockState(
            level=frame.level,
            latents=frame.latents,
            before=None,
            solver=solver_state(frame.scheduler, fresh),
        )
        for number, frame in held.items()
    }
    return QueueState(round=round, blocks=kept)


def _restored(model: VideoModel, request: ResolvedRequest, state: QueueState | None) -> dict[int, _Frame]:
    return {
        number: _Frame(block.latents, restore_solver(model.scheduler(request), block.solver), block.level)
        for number, block in (state.blocks.items() if state else ())
    }


SAMPLER = PredictorSampler(blocks, finished)
