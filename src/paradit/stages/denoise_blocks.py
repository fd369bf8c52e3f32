"""The second stage of a long video: from noise to latents, block after block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol

from torch import Tensor

from paradit.config.requests import Request, latent_shape
from paradit.distributed.world import World
from paradit.models.protocol import Prompt, VideoModel
from paradit.parallel.team import Team
from paradit.progress import Progress
from paradit.sampling import diagonal, guidance, windows
from paradit.sampling.block_pipeline import BlockPipeline
from paradit.sampling.block_state import QueueState, shared_state
from paradit.sampling.early_end import Unwanted
from paradit.sampling.layer_split import LayerShare, divide_layers, measure_layers
from paradit.sampling.noise import PooledNoise
from paradit.scheduling.block_queue import BlockQueue, queue_of
from paradit.scheduling.layer_pipeline import StageGrid
from paradit.stages.encode import by_block


class Enough(Exception):
    """A video without end is to end with the blocks that are finished."""


CONTROLS = {"windowed": windows, "fifo": diagonal}
"""What makes the blocks in the methods that `dualparal` is compared to."""


class BlockCheckpoints(Protocol):
    """Keeps finished blocks and the queue of one request; the first process has one."""

    def last(self) -> QueueState | None:
        """The queue that was kept last; the blocks that had left it are there too."""

    def block(self, number: int) -> Tensor:
        """A block that was kept."""

    def keep(self, number: int, latents: Tensor) -> None:
        """A block is finished."""

    def offer(self, state: QueueState) -> None:
        """Called after every round; may keep the state, and may end the run, or, by `Enough`, the video."""


def divide(
    model: VideoModel, request: Request, prompts: tuple[Prompt, ...], world: World, grid: StageGrid
) -> LayerShare:
    """This rank's layers; the model holds no others from here on. All ranks call it, once a model."""
    _, frames, height, width = latent_shape(request, model.spec)
    window = (queue_of(request, frames).window_frames, height, width)
    costs = measure_layers(model, window, prompts[0]) if world.rank == 0 else None
    return divide_layers(model, world, costs, grid)


def denoise_blocks(
    model: VideoModel,
    request: Request,
    prompts: tuple[Prompt, ...],
    progress: Progress,
    team: Team,
    *,
    share: LayerShare | None,
    checkpoints: BlockCheckpoints | None = None,
    heeding: AbstractContextManager[object] | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Tensor]:
    """The latents [1, C, f, h, w], fp32, of each block in order, on the first rank; none on the others.

    Every rank goes through it. share: what `divide` gave, for `dualparal` on several ranks; with the controls
    the team shares every window. Told as stage "denoise", of as many steps as all blocks take, and by
    `dualparal` after every round as its queue. Raises FloatingPointError where latents become infinite or are
    no numbers, and Unwanted where `wanted`, asked on the first rank, says that there is no use for the rest:
    on all ranks but those that are through already.
    """
    team.agree("what is asked for", repr(request).encode())
    channels, frames, height, width = latent_shape(request, model.spec)
    queue = queue_of(request, frames)
    state = checkpoints.last() if checkpoints and team.is_first else None
    round, *_ = team.gather_number(state.round if state else 0)
    assert queue.num_blocks and request.guidance_scale
    control = CONTROLS.get(request.method or "")
    finished = control.finished(queue, round) if control else queue.finished(round)
    noise = PooledNoise((channels, height, width), request.seed, queue.block_frames, queue.context_frames)
    scales = guidance.scales(model.spec, request.guidance_scale)
    prompts, later = by_block(model.spec, request, prompts)
    total = 0 if request.endless else queue.num_blocks * queue.num_steps

    def after_round(state: QueueState) -> None:
        if not control:
            _tell_queue(progress, request, queue, state.round)
        if checkpoints:
            checkpoints.offer(state)

    save = after_round if team.is_first else None
    with progress.stage("denoise", total=total), heeding or nullcontext(), suppress(Enough):
        if checkpoints and team.is_first:
            yield from (checkpoints.block(number) for number in range(finished))
        common: dict[str, Any] = {"guidance_scales": scales, "progress": progress}
        if control:
            team.agree("the model", model.fingerprint())
            common |= {"team": team, "state": shared_state(state, team, model.device)}
            blocks = control.blocks(model, queue, prompts, noise, save=save, **common)
        else:
            common |= {"later": later, "share": share, "wanted": wanted}
            common["state"] = state or (QueueState(round=round) if round else None)
            blocks = BlockPipeline(model, queue, prompts, noise, (height, width), **common).blocks(save)
        for number, block in enumerate(blocks, finished):
            if checkpoints:
                checkpoints.keep(number, block)
            if team.is_first:
                yield block
            # All ranks of a team get every block; a pipeline's ranks find their own end.
            if control and not team.gather_number(int(wanted()))[0]:
                raise Unwanted


def _tell_queue(progress: Progress, request: Request, queue: BlockQueue, rounds: int) -> None:
    """How far the blocks are after so many rounds."""
    blocks = queue.active(rounds - 1)
    count = None if request.endless else queue.num_blocks
    levels = rounds - blocks[-1], rounds - blocks[0]
    progress.queue(blocks[0] + 1, count, levels, queue.num_steps)
