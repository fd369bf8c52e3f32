"""DualParal's block queue: which frame block takes which denoising step, in which order, and what it reads.

A video of any length is divided into frame blocks (arXiv 2505.21070). In a round, which is one pass over the
queue, every block in the queue takes one denoising step, the noisiest block first. The block at the head
leaves once it has taken all steps. A block of noise joins the queue at its tail in every round or, with a
lag, in every lag-th round. So block b takes step s in round lag x b + s, and neighbouring blocks are `lag`
steps apart. Which block reads what, at which noise level, depends on the round alone, never on timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from paradit.config.errors import InputError

SAME_LEVEL, ONE_CLEANER = LEVELS = ("same-level", "one-cleaner")
LEFT_SOURCES = ("latents", "cache")


@dataclass(frozen=True)
class Context:
    """Frames of a neighbouring frame block that a block's tokens attend to."""

    frames: int = 0
    level: int = 0
    """Noise level of these frames: number of denoising steps that their latents had taken when read."""
    source: str = "latents"
    """Source of the frames' keys and values: with `latents` they are computed again together with the block's
    own keys and values; with `cache` they are read from a cache."""

    @property
    def computed(self) -> int:
        """Number of the context frames that go through the transformer again, with the block's own frames."""
        return self.frames if self.source == "latents" else 0


@dataclass(frozen=True)
class BlockStep:
    """One denoising step of one frame block: the unit of work in the block queue."""

    round: int
    block: int
    step: int
    """Index of this denoising step, from 0; it equals the number of steps that the block took before."""
    frames: int
    """Number of latent frames in the frame block."""
    left: Context
    """Context on the left: last frames of the previous frame block, which has taken more steps."""
    right: Context
    """Context on the right: first frames of the next block, which is noisier. The next block took its step
    just before, in the same round (pass over the block queue)."""

    @property
    def computed_frames(self) -> int:
        """Number of latent frames that go through the transformer in this block-step."""
        return self.left.computed + self.frames + self.right.computed

    @property
    def window_frames(self) -> int:
        """Number of latent frames that a frame block's tokens attend to, including the block's own frames."""
        return self.left.frames + self.frames + self.right.frames


@dataclass(frozen=True, kw_only=True)
class BlockQueue:
    """Queue of a video's frame blocks: when each block takes a step, and what it reads from its neighbours.

    Raises InputError for values that are not valid together.
    """

    num_frames: int | None
    """Number of latent frames in the video; None: endless. The last block has the frames that remain."""
    block_frames: int
    """Number of latent frames in a frame block; the last block of a video may have fewer."""
    context_frames: int
    """Number of latent frames that a frame block reads from each neighbouring block."""
    num_steps: int
    """Number of denoising steps that each frame block takes."""
    lag: int = 1
    """Number of rounds (passes over the queue) after which the next frame block joins the queue. So a block
    is this many steps ahead of the next one."""
    left_level: str = SAME_LEVEL
    """Noise level of the frames that a frame block reads from the previous block, with a lag of 1. With
    `same-level`, it equals the block's own level. With `one-cleaner`, it is one step further denoised, the
    latest level there is. With a larger lag, it is always the latest, `lag` steps further denoised."""
    left_source: str = "latents"
    """Source of the previous frame block's keys and values: with `latents` they are computed again from its
    latents; with `cache` they are read from a cache, which has those of its latest step. That step's latents
    are `lag - 1` steps further denoised than the block that reads them."""
    true_timesteps: bool = False
    """Whether frames that are read from neighbouring blocks have the timesteps of their own noise levels; if
    not, they have the timestep of the block that reads them."""
    expert_steps: tuple[int, ...] = ()
    """Indices of the steps at which the model switches to another expert (transformer). An expert cannot use
    keys that another expert computed. So if it computes a step of a frame block, and another expert computed
    the neighbour's, the neighbour's keys are computed again instead of read from the cache."""

    def __post_init__(self) -> None:
        for name, least in (("block_frames", 1), ("context_frames", 0), ("num_steps", 1), ("lag", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.context_frames > self.block_frames:
            raise InputError(
                f"context_frames must be at most {self.block_frames}, the frames of a neighbouring block, "
                f"got {self.context_frames}"
            )
        if self.lag > self.num_steps:
            raise InputError(
                f"lag must be at most {self.num_steps}, the number of steps, or the queue would be empty "
                f"between two blocks, got {self.lag}"
            )
        if self.left_level not in LEVELS:
            raise InputError(f"left_level must be {' or '.join(LEVELS)}, got {self.left_level!r}")
        if self.left_source not in LEFT_SOURCES:
            known = " or ".join(LEFT_SOURCES)
            raise InputError(f"left_source must be {known}, got {self.left_source!r}")
        if self.left_source == "cache" and self.left_level != SAME_LEVEL:
            raise InputError(
                "left_source 'cache' reads keys of the previous round, which are at the same level: "
                "use left_level same-level, or left_source latents"
            )

    @property
    def num_blocks(self) -> int | None:
        """Number of frame blocks in the video; None: endless."""
        return None if self.num_frames is None else -(-self.num_frames // self.block_frames)

    @property
    def num_rounds(self) -> int | None:
        """Number of rounds (passes over the queue) until all blocks are denoised; None: endless."""
        return None if self.num_blocks is None else self.lag * (self.num_blocks - 1) + self.num_steps

    @property
    def full(self) -> int:
        """Largest number of frame blocks in the queue at the same time, if the video has enough of them."""
        return -(-self.num_steps // self.lag)

    @property
    def most_kept(self) -> int:
        """Largest number of frame blocks kept at a time: those in the queue, and the last finished one."""
        return min(self.full + 1, self.num_blocks or self.full + 1)

    @property
    def open_rounds(self) -> int:
        """Number of rounds, from the first, that would be the same if the video were longer.

        A longer video can resume after them. In a round (one pass over the block queue), every active frame
        block takes one step. The counted rounds end before the last block joins the queue, because that block
        may be shorter than it would be in a longer video.
        """
        assert self.num_blocks
        return self.lag * (self.num_blocks - 1)

    @property
    def window_frames(self) -> int:
        """Largest number of latent frames in a window: a frame block, and what it reads from its neighbours.

        RoPE positions are counted within a window, so this is also the number of positions in time.
        """
        frames = self.block_frames + 2 * self.context_frames
        return frames if self.num_frames is None else min(frames, self.num_frames)

    def most_computed(self, experts: int = 1) -> int:
        """Return the largest number of latent frames that go through the transformer in one block-step.

        experts: number of the model's experts. One cannot use keys that another computed.
        """
        sides = 2 if experts > 1 else int(self.left_source == "latents")
        frames = self.block_frames + sides * self.context_frames
        return frames if self.num_frames is None else min(frames, self.num_frames)

    def frames_of(self, block: int) -> int:
        """Return the number of latent frames in a frame block."""
        if self.num_frames is None:
            return self.block_frames
        return min(self.block_frames, self.num_frames - block * self.block_frames)

    def range_of(self, block: int) -> range:
        """Return the range of latent frames in a frame block."""
        start = block * self.block_frames
        return range(start, start + self.frames_of(block))

    def levels_of(self, step: BlockStep) -> list[int]:
        """Return the noise level of each latent frame that goes through the transformer in a block-step.

        A level is the number of steps that a frame has taken.
        """
        left, right = step.left, step.right
        own = [step.step] * step.frames
        return [*[left.level] * left.computed, *own, *[right.level] * right.computed]

    def computed_of(self, step: BlockStep) -> range:
        """Return the range of latent frames that go through the transformer in a block-step."""
        own = self.range_of(step.block)
        return range(own.start - step.left.computed, own.stop + step.right.computed)

    def window_of(self, block: int) -> range:
        """Return the range of latent frames that a block attends to: its own, and context on both sides."""
        start, after = block * self.block_frames, self.context_frames
        stop = start + self.block_frames + after
        return range(max(0, start - after), stop if self.num_frames is None else min(stop, self.num_frames))

    def blocks(self, first_block: int = 0) -> Iterator[int]:
        """Yield the indices of the video's frame blocks, beginning with `first_block`."""
        return count(first_block) if self.num_blocks is None else iter(range(first_block, self.num_blocks))

    def rounds(self, first_round: int = 0) -> Iterator[int]:
        """Yield the indices of the rounds (passes over the block queue), beginning with `first_round`."""
        return count(first_round) if self.num_rounds is None else iter(range(first_round, self.num_rounds))

    def finished(self, round: int) -> int:
        """Return how many frame blocks have left the queue, fully denoised, when a round begins.

        A round is one pass over the queue, in which each block takes one denoising step.
        """
        return max(0, (round - self.num_steps) // self.lag + 1)

    def joined(self, round: int) -> int:
        """Return how many frame blocks have joined the queue before a round begins.

        A round is one pass over the queue, in which each block takes one denoising step.
        """
        joined = -(-round // self.lag)
        return joined if self.num_blocks is None else min(joined, self.num_blocks)

    def active(self, round: int) -> range:
        """Return the indices of the frame blocks in the queue during a round, the most denoised block first.

        In a round, each block in the queue takes one denoising step.
        """
        return range(self.finished(round), self.joined(round + 1))

    def steps(self, first_round: int = 0) -> Iterator[BlockStep]:
        """Yield all steps of all frame blocks in the queue's order, from round (pass) `first_round` on."""
        for round in self.rounds(first_round):
            for block in reversed(self.active(round)):  # the noisiest first
                yield self._step(round, block)

    def _step(self, round: int, block: int) -> BlockStep:
        step = round - self.lag * block
        left = right = Context()
        if block > 0 and self.context_frames:
            left = self._left(step)
        if block + 1 in self.active(round) and self.context_frames:
            frames = min(self.context_frames, self.frames_of(block + 1))
            # The next block has taken its step first in this round, and its keys are from before that step.
            level = step - self.lag
            right = Context(frames, level, "cache" if self._same_expert(level, step) else "latents")
        return BlockStep(round, block, step, self.frames_of(block), left, right)

    def _left(self, step: int) -> Context:
        """Return the context on the left of a frame block that takes step `step`."""
        # The latest level of the previous block; its step in the round before has led to it.
        latest = min(step + self.lag, self.num_steps)
        if self.left_source == "cache" and self._same_expert(step, latest - 1):
            return Context(self.context_frames, latest - 1, "cache")
        same_level = self.lag == 1 and self.left_level == SAME_LEVEL
        return Context(self.context_frames, step if same_level else latest)

    def _same_expert(self, first: int, last: int) -> bool:
        """Return whether the same expert (transformer) computes steps `first` and `last`."""
        return not any(first < step <= last for step in self.expert_steps)


def changes_of(experts: Sequence[int]) -> tuple[int, ...]:
    """Return the steps at which the expert (transformer) changes. experts: the expert of each step."""
    return tuple(step for step in range(1, len(experts)) if experts[step] != experts[step - 1])


def position_warning(queue: BlockQueue, trained_frames: int) -> str | None:
    """Return a warning if a block attends to more latent frames than the model was trained on, else None."""
    if queue.window_frames <= trained_frames:
        return None
    return (
        f"windows of {queue.window_frames} latent frames (a block's {queue.block_frames} and "
        f"{queue.context_frames} on each side) are longer than the {trained_frames} that the model was "
        "trained on: the motion may break"
    )
