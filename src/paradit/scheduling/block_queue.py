"""Which frame block takes which denoising step, in which order, and what it reads of its neighbours.

DualParal's block queue (arXiv 2505.21070). A video of any length is cut into frame blocks. In every round
one block of noise joins the queue at its tail, every block in it takes one denoising step, noisiest first,
and the block at its head leaves when it has taken them all. So block b takes step s in round b + s, and
neighbours are one step apart. Which block reads what, at which level, is a function of the round: nothing
here depends on when something is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from paradit.config.errors import InputError

LEVELS = ("same-level", "one-cleaner")
LEFT_SOURCES = ("latents", "cache")


@dataclass(frozen=True)
class Context:
    """Frames of a neighbour that a block's tokens attend to."""

    frames: int = 0
    level: int = 0
    """How many steps their latents had taken."""
    source: str = "latents"
    """`latents`: they are computed once more, in this window; `cache`: their keys and values are read."""

    @property
    def computed(self) -> int:
        """Frames that are computed with the block's own."""
        return self.frames if self.source == "latents" else 0


@dataclass(frozen=True)
class BlockStep:
    """One denoising step of one frame block: the unit of work."""

    round: int
    block: int
    step: int
    """From 0; also how many steps the block's latents have taken."""
    frames: int
    """Latent frames of the block."""
    left: Context
    """The last frames of the cleaner neighbour."""
    right: Context
    """The first frames of the noisier neighbour, which took its step just before, in the same round."""

    @property
    def computed_frames(self) -> int:
        """Latent frames that go through the transformer."""
        return self.left.computed + self.frames + self.right.computed

    @property
    def window_frames(self) -> int:
        """Latent frames that the block's tokens attend to."""
        return self.left.frames + self.frames + self.right.frames


@dataclass(frozen=True, kw_only=True)
class BlockQueue:
    """How a video is cut into frame blocks, and what a block reads of its neighbours.

    Raises InputError where it cannot be done.
    """

    num_frames: int | None
    """Latent frames of the video; None: without end. The last block has what is left over."""
    block_frames: int
    """Latent frames of a block."""
    context_frames: int
    """Latent frames that a block reads of each neighbour."""
    num_steps: int
    """Denoising steps."""
    left_level: str = "same-level"
    """The left context's level: `same-level` as the block, or `one-cleaner`, the newest there is."""
    left_source: str = "latents"
    """Of the left context; from the `cache` it is at the same level."""
    expert_steps: tuple[int, ...] = ()
    """Steps in which another expert takes over. It reads no keys of the one before: the right context is
    computed once more in that step."""

    def __post_init__(self) -> None:
        for name, least in (("block_frames", 1), ("context_frames", 0), ("num_steps", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num_frames is not None and self.num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {self.num_frames}")
        if self.context_frames > self.block_frames:
            raise InputError(
                f"context_frames are the neighbour's, which has {self.block_frames}: "
                f"use at most {self.block_frames}, got {self.context_frames}"
            )
        if self.left_level not in LEVELS:
            raise InputError(f"left_level must be {' or '.join(LEVELS)}, got {self.left_level!r}")
        if self.left_source not in LEFT_SOURCES:
            known = " or ".join(LEFT_SOURCES)
            raise InputError(f"left_source must be {known}, got {self.left_source!r}")
        if self.left_source == "cache" and self.left_level != "same-level":
            raise InputError(
                "left_source 'cache' has keys of the round before, which are at the same level: "
                "use left_level same-level, or left_source latents"
            )

    @property
    def num_blocks(self) -> int | None:
        """None: without end."""
        return None if self.num_frames is None else -(-self.num_frames // self.block_frames)

    @property
    def num_rounds(self) -> int | None:
        """None: without end."""
        return None if self.num_blocks is None else self.num_blocks + self.num_steps - 1

    @property
    def open_rounds(self) -> int:
        """After so many rounds nothing shows yet that the video has an end: a longer one goes on from there.

        The last block may be shorter than it then is, so it must not have joined.
        """
        assert self.num_blocks
        return self.num_blocks - 1

    @property
    def window_frames(self) -> int:
        """Latent frames of the longest window, which are also its positions."""
        frames = self.block_frames + 2 * self.context_frames
        return frames if self.num_frames is None else min(frames, self.num_frames)

    def frames_of(self, block: int) -> int:
        """Latent frames of a block."""
        if self.num_frames is None:
            return self.block_frames
        return min(self.block_frames, self.num_frames - block * self.block_frames)

    def window_of(self, block: int) -> range:
        """The video's latent frames that are a block's own or its contexts'."""
        start, after = block * self.block_frames, self.context_frames
        stop = start + self.block_frames + after
        return range(max(0, start - after), stop if self.num_frames is None else min(stop, self.num_frames))

    def blocks(self, first_block: int = 0) -> Iterator[int]:
        """All blocks from one on."""
        return count(first_block) if self.num_blocks is None else iter(range(first_block, self.num_blocks))

    def rounds(self, first_round: int = 0) -> Iterator[int]:
        """All rounds from one on."""
        return count(first_round) if self.num_rounds is None else iter(range(first_round, self.num_rounds))

    def finished(self, round: int) -> int:
        """How many blocks have left the queue before a round."""
        return max(0, round - self.num_steps + 1)

    def active(self, round: int) -> range:
        """The blocks that take a step in a round, cleanest first."""
        newest = round if self.num_blocks is None else min(round, self.num_blocks - 1)
        return range(max(0, round - self.num_steps + 1), newest + 1)

    def steps(self, first_round: int = 0) -> Iterator[BlockStep]:
        """All work from a round on, in order."""
        for round in self.rounds(first_round):
            for block in reversed(self.active(round)):
                yield self._step(round, block)

    def _step(self, round: int, block: int) -> BlockStep:
        step = round - block
        left = right = Context()
        if block > 0 and self.context_frames:
            level = step + 1 if self.left_level == "one-cleaner" else step
            left = Context(self.context_frames, level, self.left_source)
        if block + 1 in self.active(round) and self.context_frames:
            frames = min(self.context_frames, self.frames_of(block + 1))
            source = "latents" if step in self.expert_steps else "cache"
            right = Context(frames, step - 1, source)
        return BlockStep(round, block, step, self.frames_of(block), left, right)


def position_warning(queue: BlockQueue, trained_frames: int) -> str | None:
    """What to say where windows are longer than the latent frames that the model was trained on."""
    if queue.window_frames <= trained_frames:
        return None
    return (
        f"windows of {queue.window_frames} latent frames (a block's {queue.block_frames} and "
        f"{queue.context_frames} on each side) are longer than the {trained_frames} that the model was "
        "trained on: the motion may break"
    )
