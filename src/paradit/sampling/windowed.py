"""Denoising of a long video in independent windows whose overlaps are blended; a baseline for comparisons.

A window is a frame block with its context on both sides. The method is approximate: nothing passes between
windows while they are denoised, so they agree only as far as the prompt and their noise make them. If two
windows overlap, the latents of one fade into those of the other, even if their contents do not match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import Prompt, VideoModel
from paradit.parallel.predictor import Predictor
from paradit.progress import Progress
from paradit.sampling import full_sequence
from paradit.sampling.block_sampler import PredictorSampler
from paradit.sampling.block_state import BlockState, QueueState
from paradit.sampling.noise import BlockNoise
from paradit.scheduling.block_queue import BlockQueue


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

    Denoises one window after another: a frame block with the context frames beside it. request: the request,
    for its steps and its guidance. conditions: the request's encoded pictures. save: function that is called
    after every step with the latents of finished windows; it returns whether denoising continues. state: a
    state from which to resume, which `save` received earlier. Steps of windows are reported as stage
    "denoise". Raises FloatingPointError, on every rank, if latents become non-finite (inf or NaN).
    """
    begun, progress = state.round if state else 0, progress or Progress()
    progress.resume("denoise", begun * queue.num_steps)
    whole = {number: block.latents for number, block in state.blocks.items()} if state else {}
    for number in queue.blocks(begun):
        # A checkpoint holds whole windows only: a run that resumes denoises the current window from its
        # noise.
        offer = partial(save, _state(number, whole, queue.num_steps)) if save else None
        (whole[number],) = full_sequence.denoise(
            model,
            noise_of(queue, noise, number).to(model.device),
            prompts,
            request=request,
            conditions=conditions,
            first_frame=queue.window_of(number).start,
            noise=partial(noise.step, number),
            progress=_Within(progress, number * queue.num_steps),
            predictor=predictor,
            checkpoints=_WholeWindows(offer),
        )
        if number > 0:
            yield blended(queue, whole, number - 1)
        if number + 1 == queue.num_blocks:
            yield blended(queue, whole, number)
        # Block `number`, which comes next, is covered by the windows from number - 1 on.
        whole.pop(number - 2, None)


def finished(queue: BlockQueue, round: int) -> int:  # noqa: ARG001
    """Return the number of frame blocks that are finished once `round` windows have been denoised.

    A window is a frame block with the context frames beside it. The result is one less than the number of
    windows, because the last frame block waits to be blended with the next window.
    """
    return max(0, round - 1)


def noise_of(queue: BlockQueue, noise: BlockNoise, block: int) -> Tensor:
    """Return the initial noise [1, C, f, h, w] of a frame block and the context frames beside it.

    block: index of the frame block.
    """
    window, size = queue.window_of(block), queue.block_frames
    first, last = window.start // size, (window.stop - 1) // size
    several = torch.cat([noise.block(number) for number in range(first, last + 1)], dim=2)
    return several[:, :, window.start - first * size : window.stop - first * size]


def blended(queue: BlockQueue, windows: dict[int, Tensor], block: int) -> Tensor:
    """Return a frame block's latents [1, C, f, h, w], blended from all windows that cover it.

    A window is a frame block with the context frames beside it. windows: mapping from the index of a window
    to its latents [1, C, F, h, w]. block: index of the frame block. Each window's weight rises and falls
    linearly over the frames that it shares with its neighbours.
    """
    start = block * queue.block_frames
    own = range(start, start + queue.frames_of(block))
    frames = []
    for frame in own:
        there = [number for number in windows if frame in queue.window_of(number)]
        weights = torch.tensor([_weight(queue, number, frame) for number in there])
        parts = [windows[number][:, :, frame - queue.window_of(number).start] for number in there]
        weights = (weights / weights.sum()).to(parts[0].device)
        frames.append(torch.tensordot(weights, torch.stack(parts), dims=1))
    return torch.stack(frames, dim=2)


def _weight(queue: BlockQueue, block: int, frame: int) -> float:
    overlap = 2 * queue.context_frames
    since = frame - (block * queue.block_frames - queue.context_frames)
    # Weights are never 0, so that those of all windows that cover a frame have a sum to divide by.
    rising = 1.0 if block == 0 else (since + 1) / (overlap + 1)
    left = queue.block_frames + overlap - since
    falling = 1.0 if block + 1 == queue.num_blocks else left / (overlap + 1)
    return min(1.0, rising, falling)


def _state(round: int, windows: dict[int, Tensor], steps: int) -> QueueState:
    kept = {
        number: BlockState(level=steps, latents=latents, before=None, solver={})
        for number, latents in windows.items()
        if number >= round - 2
    }
    return QueueState(round=round, blocks=kept)


class _WholeWindows:
    """Stand-in for the checkpoints of one window: it saves nothing, but can end the denoising after any step.

    A window is a frame block with the context frames beside it. It is not resumed in the middle: the
    checkpoints of the video have only whole windows.
    """

    def __init__(self, offer: Callable[[], bool] | None) -> None:
        self._offer = offer

    def last(self, parse: Callable[[bytes], object]) -> bytes:  # noqa: ARG002
        return b""

    def offer(self, state: Callable[[], bytes], *, finished: int = 0, is_open: bool = False) -> bool:  # noqa: ARG002
        return self._offer() if self._offer else True

    def block(self, number: int) -> Tensor:
        raise LookupError(number)

    def keep(self, number: int, latents: Tensor) -> None: ...


class _Within(Progress):
    """Progress of denoising one window (a frame block with context frames), reported as steps of the video.

    The steps are those of the video's stage "denoise".
    """

    def __init__(self, progress: Progress, before: int) -> None:
        super().__init__(progress.emit)
        self._progress, self._before = progress, before

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[None]:  # noqa: ARG002
        # `BlockSampler` has begun the stage, for all windows.
        yield

    def step(self, name: str, done: int) -> None:
        self._progress.step(name, self._before + done)


SAMPLER = PredictorSampler(blocks, finished)
