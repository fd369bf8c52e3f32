"""Base classes for samplers of long videos, which save their state after each round and can resume from it.

In a round, every frame block in the queue takes one denoising step. In `sampling.windowed`, a round denoises
one window (a frame block with its context frames) instead.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from paradit.config.methods.blocks import BlocksRequest, in_blocks
from paradit.config.requests import latent_shape
from paradit.sampling.block_state import QueueState, shared_state
from paradit.sampling.early_stop import Unwanted
from paradit.sampling.noise import PooledNoise
from paradit.sampling.sampler import Sampler, Work
from paradit.scheduling.block_queue import BlockQueue


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Starting point of a long video's denoising, new or resumed, with everything that its sampler needs."""

    work: Work
    request: BlocksRequest
    queue: BlockQueue
    noise: PooledNoise
    state: QueueState | None
    """State from the last checkpoint, on the first rank; None on other ranks, or if there is no checkpoint.
    """
    round: int
    """Index of the next round, in which every frame block in the queue takes one step; the same on all ranks.
    """
    save: Callable[[QueueState], bool] | None
    """Function that saves a checkpoint of the state if one is due; it returns whether denoising continues.
    The first rank calls it with the state after every round, in which every frame block in the queue takes
    one step. None on other ranks."""


class BlockSampler(Sampler):
    """Base class of samplers of long videos, which yield frame blocks and resume from checkpoints."""

    def blocks(self, work: Work) -> Iterator[Tensor]:
        begun, predictor, checkpoints = self._begun(work), work.predictor, work.checkpoints
        made = finished = self.finished(begun.queue, begun.round)
        endless, queue = begun.request.endless, begun.queue
        with work.progress.stage("denoise", 0 if endless else (queue.num_blocks or 0) * queue.num_steps):
            if checkpoints and predictor.is_first:
                # Blocks that were finished before the checkpoint are read, not denoised again.
                yield from (checkpoints.block(number) for number in range(finished))
            try:
                for made, block in enumerate(self.fresh(begun), finished + 1):
                    if checkpoints:
                        checkpoints.keep(made - 1, block)
                    if predictor.is_first:
                        yield block
            except Unwanted:
                if not endless or not made:  # an endless video ends with the finished blocks
                    raise

    def _begun(self, work: Work) -> Begun:
        """Return the point from which denoising starts or resumes, as the first rank's checkpoint decides.

        work: everything that this rank needs to denoise the request.
        """
        request, predictor, spec = in_blocks(work.request), work.predictor, work.model.spec
        channels, _, height, width = latent_shape(request, spec)
        queue = request.queue(spec)

        def read(content: bytes) -> QueueState:
            found = QueueState.from_bytes(content, work.model.device)
            self.check(work, queue, found)
            return found

        state = None
        if work.checkpoints and predictor.is_first and (content := work.checkpoints.last(read)):
            state = read(content)
        # Only the first rank has checkpoints, so it decides the round for all.
        round, *_ = predictor.gather_number(state.round if state else 0)
        return Begun(
            work=work,
            request=request,
            queue=queue,
            noise=PooledNoise(
                (channels, height, width), request.seed, queue.block_frames, queue.context_frames
            ),
            state=state,
            round=round,
            save=partial(self.after_round, work, queue) if predictor.is_first else None,
        )

    def after_round(self, work: Work, queue: BlockQueue, state: QueueState) -> bool:
        """Save a checkpoint of the state after a round if one is due; return whether denoising continues.

        In a round, every frame block in the queue takes one step. Called on the first rank only.
        """
        is_open = self.is_open(queue, state.round)
        return not work.checkpoints or work.checkpoints.offer(state.to_bytes, is_open=is_open)

    def check(self, work: Work, queue: BlockQueue, state: QueueState) -> None:
        """Raise InputError if a video cannot resume from a saved state, which then counts as none."""

    def is_open(self, queue: BlockQueue, round: int) -> bool:  # noqa: ARG002
        """Return whether a longer version of the video could resume from the state before a round.

        Such a state is called open. In a round, every frame block in the queue takes one step.
        """
        return False

    @abstractmethod
    def finished(self, queue: BlockQueue, round: int) -> int:
        """Return the number of frame blocks that are fully denoised when round `round` begins.

        In a round, every frame block in the queue takes one step. round: index of the round.
        """

    @abstractmethod
    def fresh(self, begun: Begun) -> Iterator[Tensor]:
        """Denoise the frame blocks that are not finished yet, and yield the latents of each in order."""


class PredictorSampler(BlockSampler):
    """Sampler that makes a long video in windows; each is a frame block with the frames beside it.

    All ranks share the tokens of each window, through a `Predictor`, and all of them get every frame block.
    """

    def __init__(
        self, blocks: Callable[..., Iterator[Tensor]], finished: Callable[[BlockQueue, int], int]
    ) -> None:
        """Make a sampler from two functions.

        blocks: function that yields the latents of each frame block, as `sampling.windowed.blocks` does.
        finished: function that returns the number of frame blocks that are fully denoised when a given round
        of the block queue begins, as `sampling.windowed.finished` does.
        """
        self._blocks, self._finished = blocks, finished

    def finished(self, queue: BlockQueue, round: int) -> int:
        return self._finished(queue, round)

    def fresh(self, begun: Begun) -> Iterator[Tensor]:
        work = begun.work
        # With different weights, ranks would mix the results of two models without any error.
        work.predictor.agree("the model", work.model.fingerprint())
        return self._blocks(
            work.model,
            begun.queue,
            work.prompts,
            begun.noise,
            request=begun.request,
            conditions=work.conditions,
            predictor=work.predictor,
            progress=work.progress,
            state=shared_state(begun.state, work.predictor, work.model.device),
            save=begun.save,
        )

    def after_round(self, work: Work, queue: BlockQueue, state: QueueState) -> bool:
        return super().after_round(work, queue, state) and work.wanted()
