"""DualParal's block queue: which frame block takes which denoising step, in which order, and what it reads.

A video of any length is divided into frame blocks (arXiv 2505.21070). In every round (pass over the queue),
one block of noise joins the queue at its tail. Every block in the queue then takes one denoising step,
noisiest first. The block at the head leaves once it has taken all steps. Therefore block b takes step s in
round b + s, and neighbouring blocks are one step apart. Which block reads what, at which noise level, depends
on the round alone, never on timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from paradit.config.errors import InputError

LEVELS = ("same-level", "one-cleaner")
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
    left_level: str = "same-level"
    """Noise level of the frames that a frame block reads from the previous block. With `same-level`, it
    equals the block's own level. With `one-cleaner`, it is one step further denoised, the latest level there
    is."""
    left_source: str = "latents"
    """Source of the previous frame block's keys and values: `latents`, from which they are computed again, or
    `cache`, which has them at the noise level of the block that reads them."""
    expert_steps: tuple[int, ...] = ()
    """Indices of the steps at which the model switches to another expert (transformer). An expert cannot use
    keys that another expert computed, so in these steps keys of the next block are computed again instead of
    read from the cache."""

    def __post_init__(self) -> None:
        for name, least in (("block_frames", 1), ("context_frames", 0), ("num_steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.context_frames > self.block_frames:
            raise InputError(
                f"context_frames must be at most {self.block_frames}, the frames of a neighbouring block, "
                f"got {self.context_frames}"
            )
        if self.left_level not in LEVELS:
            raise InputError(f"left_level must be {' or '.join(LEVELS)}, got {self.left_level!r}")
        if self.left_source not in LEFT_SOURCES:
            known = " or ".join(LEFT_SOURCES)
            raise InputError(f"left_source must be {known}, got {self.left_source!r}")
        if self.left_source == "cache" and self.left_level != "same-level":
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
        return None if self.num_blocks is None else self.num_blocks + self.num_steps - 1

    @property
    def open_rounds(self) -> int:
        """Number of rounds, from the first, that would be the same if the video were longer.

        A longer video can resume after them. In a round (one pass over the block queue), every active frame
        block takes one step. The counted rounds end before the last block joins the queue, because that block
        may be shorter than it would be in a longer video.
        """
        assert self.num_blocks
        return self.num_blocks - 1

    @property
    def window_frames(self) -> int:
        """Largest number of latent frames in a window: a frame block, and what it reads from its neighbours.

        RoPE positions are counted within a window, so this is also the number of positions in time.
        """
        frames = self.block_frames + 2 * self.context_frames
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
        return max(0, round - self.num_steps + 1)

    def active(self, round: int) -> range:
        """Return the indices of the frame blocks in the queue during a round, the most denoised block first.

        In a round, each block in the queue takes one denoising step.
        """
        newest = round if self.num_blocks is None else min(round, self.num_blocks - 1)
        return range(max(0, round - self.num_steps + 1), newest + 1)

    def steps(self, first_round: int = 0) -> Iterator[BlockStep]:
        """Yield all steps of all frame blocks in the queue's order, from round (pass) `first_round` on."""
        for round in self.rounds(first_round):
            for block in reversed(self.active(round)):  # the noisiest first
                yield self._step(round, block)

    def _step(self, round: int, block: int) -> BlockStep:
        step = round - block
        left = right = Context()
        if block > 0 and self.context_frames:
            # In the round before, the previous block has gone from level `step` to level `step + 1`.
            level = step + 1 if self.left_level == "one-cleaner" else step
            left = Context(self.context_frames, level, self.left_source)
        if block + 1 in self.active(round) and self.context_frames:
            frames = min(self.context_frames, self.frames_of(block + 1))
            source = "latents" if step in self.expert_steps else "cache"
            # The next block has taken its step first in this round, and its keys are from before that step.
            right = Context(frames, step - 1, source)
        return BlockStep(round, block, step, self.frames_of(block), left, right)


def changes_of(experts: Sequence[int]) -> tuple[int, ...]:
    """Return the steps that another expert computes than the step before; `experts`: each step's expert."""
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
