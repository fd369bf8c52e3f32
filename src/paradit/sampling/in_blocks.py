"""What all samplers of long videos have in common: what is kept of one, and where it goes on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from paradit.config.methods.blocks import BlocksRequest, in_blocks
from paradit.config.requests import latent_shape
from paradit.sampling import guidance
from paradit.sampling.block_state import QueueState, shared_state
from paradit.sampling.early_end import Unwanted
from paradit.sampling.noise import PooledNoise
from paradit.sampling.sampler import Sampler, Work
from paradit.scheduling.block_queue import BlockQueue


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A long video's denoising, as far as it has come."""

    work: Work
    request: BlocksRequest
    queue: BlockQueue
    noise: PooledNoise
    guidance_scales: tuple[float, ...]
    state: QueueState | None
    """What was kept last, on the first rank."""
    round: int
    """The next one, on all ranks."""
    save: Callable[[QueueState], bool] | None
    """Called after every round, on the first rank; whether the work goes on."""


class BlockSampler(Sampler):
    """A sampler whose blocks come one after the other."""

    def blocks(self, work: Work) -> Iterator[Tensor]:
        begun, team, checkpoints = self._begun(work), work.team, work.checkpoints
        made = finished = self.finished(begun.queue, begun.round)
        endless, queue = begun.request.endless, begun.queue
        with work.progress.stage("denoise", 0 if endless else (queue.num_blocks or 0) * queue.num_steps):
            if checkpoints and team.is_first:
                yield from (checkpoints.block(number) for number in range(finished))
            try:
                for made, block in enumerate(self.fresh(begun), finished + 1):
                    if checkpoints:
                        checkpoints.keep(made - 1, block)
                    if team.is_first:
                        yield block
            except Unwanted:
                if not endless or not made:  # a video without end ends with what is finished
                    raise

    def _begun(self, work: Work) -> Begun:
        """Return where the work is, which the first rank says."""
        request, team, spec = in_blocks(work.request), work.team, work.model.spec
        channels, _, height, width = latent_shape(request, spec)
        queue = request.queue(spec)
        state = None
        if work.checkpoints and team.is_first and (content := work.checkpoints.last(QueueState.from_bytes)):
            state = QueueState.from_bytes(content, work.model.device)
        round, *_ = team.gather_number(state.round if state else 0)
        return Begun(
            work=work,
            request=request,
            queue=queue,
            noise=PooledNoise(
                (channels, height, width), request.seed, queue.block_frames, queue.context_frames
            ),
            guidance_scales=guidance.scales(spec, request.guidance_scale),
            state=state,
            round=round,
            save=partial(self.after_round, work, queue) if team.is_first else None,
        )

    def after_round(self, work: Work, queue: BlockQueue, state: QueueState) -> bool:
        """Called on the first rank after every round; returns whether the work goes on."""
        is_open = self.is_open(queue, state.round)
        return not work.checkpoints or work.checkpoints.offer(state.to_bytes, is_open=is_open)

    def is_open(self, queue: BlockQueue, round: int) -> bool:  # noqa: ARG002
        """Whether a longer video could go on from just this round's state."""
        return False

    @abstractmethod
    def finished(self, queue: BlockQueue, round: int) -> int:
        """Return how many blocks are done before a round."""

    @abstractmethod
    def fresh(self, begun: Begun) -> Iterator[Tensor]:
        """Make the blocks that are not done yet."""


class TeamSampler(BlockSampler):
    """A sampler of which all ranks of the team share every window, so that each gets every block."""

    def __init__(
        self, blocks: Callable[..., Iterator[Tensor]], finished: Callable[[BlockQueue, int], int]
    ) -> None:
        """blocks, finished: as those of `sampling.windows`."""
        self._blocks, self._finished = blocks, finished

    def finished(self, queue: BlockQueue, round: int) -> int:
        return self._finished(queue, round)

    def fresh(self, begun: Begun) -> Iterator[Tensor]:
        work = begun.work
        work.team.agree("the model", work.model.fingerprint())
        return self._blocks(
            work.model,
            begun.queue,
            work.prompts,
            begun.noise,
            guidance_scales=begun.guidance_scales,
            team=work.team,
            progress=work.progress,
            state=shared_state(begun.state, work.team, work.model.device),
            save=begun.save,
        )

    def after_round(self, work: Work, queue: BlockQueue, state: QueueState) -> bool:
        return super().after_round(work, queue, state) and work.wanted()
