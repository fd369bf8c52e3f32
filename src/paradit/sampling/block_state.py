"""State of a long video's denoising between two rounds of the block queue, enough to resume bit for bit.

In a round, each frame block in the queue takes one step. The state consists of plain values and tensors. It
does not include the noise of later frame blocks, which follows from the seed and a block's index. Nor does it
include cached keys and values of right neighbours, because they are read only within a round.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from paradit.attention.base import Site
from paradit.config.options import Option, decode
from paradit.models.protocol import Scheduler
from paradit.parallel.predictor import Predictor
from paradit.sampling.solver_state import as_tensor

HeadFeatures = dict[tuple[int, str, int], tuple[Tensor, Tensor]]
"""Type of a cache of keys (before RoPE) and values, [B, S, D] each.

The cache is indexed by (layer, name of the attention in the layer, head).
"""


@dataclass(frozen=True, kw_only=True)
class BlockState:
    """State of a frame block between two denoising steps."""

    level: Annotated[int, Option(least=0)]
    """Number of denoising steps that the frame block has taken."""
    latents: Tensor
    """Latents of the frame block, [1, C, F, h, w], fp32."""
    before: Tensor | None
    """Latents of the frame block one step earlier; None if there are none, or nothing reads them.

    The block's right neighbour may read these instead of the latest ones, because their noise level is that
    of the neighbour.
    """
    solver: dict[str, object]
    """Attributes of the frame block's own scheduler that differ from a new scheduler's (see `solver_state`).
    """


@dataclass
class HeldBlock:
    """A frame block on the first rank: its latents after its last two steps, and its own scheduler."""

    level: int
    """Number of denoising steps that the frame block has taken."""
    latents: Tensor
    before: Tensor | None
    """Latents of the frame block one step earlier; None if there are none."""
    scheduler: Scheduler

    def at(self, level: int) -> Tensor:
        """Return the frame block's latents after `level` steps; only those of its last two steps are kept."""
        latents = {self.level: self.latents, self.level - 1: self.before}.get(level)
        assert latents is not None, (
            f"latents of level {level} were requested, but the block is at level {self.level}"
        )
        return latents

    def state(self, fresh: Scheduler) -> BlockState:
        """Return the frame block's state to save; `fresh` is a new scheduler like its own."""
        solver = solver_state(self.scheduler, fresh)
        return BlockState(level=self.level, latents=self.latents, before=self.before, solver=solver)

    @classmethod
    def of(cls, state: BlockState, fresh: Scheduler) -> HeldBlock:
        """Return the frame block with a saved state; `fresh`, a new scheduler, becomes its own."""
        return cls(state.level, state.latents, state.before, restore_solver(fresh, state.solver))


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """State of a long video between two rounds of the block queue, as one rank saves it.

    In a round, each frame block in the queue takes one step. Only the first rank saves frame blocks.
    """

    round: int
    """Index of the next round, in which every frame block in the queue takes one step."""
    blocks: dict[int, BlockState] = field(default_factory=dict)
    """Mapping from frame block index to state, for the blocks in the queue and the last block that left it.

    The block that left is still read by its right neighbour.
    """
    left_features: dict[tuple[int, int], HeadFeatures] = field(default_factory=dict)
    """Mapping from (frame block, guidance branch) to cached keys and values of the block's last frames. They
    are for the block's right neighbour, and cover only this rank's layers and heads. They are saved because
    they cannot be computed again. Empty if left neighbours are not read from a cache."""

    def to_bytes(self) -> bytes:
        """Return the state as bytes that `from_bytes` reads."""
        buffer = io.BytesIO()
        # Plain dicts, because torch.load(weights_only=True) does not load our classes.
        blocks = {number: vars(block) for number, block in self.blocks.items()}
        torch.save({**vars(self), "blocks": blocks}, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, device: torch.device | None = None) -> QueueState:
        """Read a state that `to_bytes` has written, with its tensors on `device`.

        Raises InputError, or any error of `torch.load`, if the bytes are not a valid state.
        """
        found = torch.load(io.BytesIO(content), map_location=device or "cpu", weights_only=True)
        state = decode(_Stored, found)
        return cls(
            round=state.round,
            blocks={number: decode(BlockState, block) for number, block in state.blocks.items()},
            left_features={of: _named(parts) for of, parts in state.left_features.items()},
        )


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Format in which `QueueState.to_bytes` stores a state."""

    round: Annotated[int, Option(least=0)]
    blocks: dict[int, dict[str, object]]
    left_features: dict[tuple[int, int], dict[tuple[int | str, ...], tuple[Tensor, Tensor]]]


def shared_state(state: QueueState | None, predictor: Predictor, device: torch.device) -> QueueState | None:
    """Send the first process's saved state to all processes that denoise together, and return it on each.

    Returns None on all of them if the first process has no saved state.
    """
    content = state.to_bytes() if state and predictor.is_first else b""
    size, *_ = predictor.gather_number(len(content))
    if not size:
        return None
    kept = predictor.share(lambda: as_tensor(content, device), (size,), torch.uint8, device)
    return QueueState.from_bytes(kept.cpu().numpy().tobytes(), device)


def _named(features: Mapping[tuple[int | str, ...], tuple[Tensor, Tensor]]) -> HeadFeatures:
    """Return cached features with the attention's name in their keys: (layer, name of the attention, head).

    Version 0.1 saved features without the name.
    """
    found: HeadFeatures = {}
    for (layer, *name, head), parts in features.items():
        found[int(layer), str(name[0]) if name else Site(0).name, int(head)] = parts
    return found


def solver_state(scheduler: Scheduler, fresh: Scheduler) -> dict[str, object]:
    """Return those attributes of a diffusers scheduler that have changed since it was new.

    fresh: a new scheduler of the same class and configuration, for comparison.
    """
    return {
        # Multistep schedulers change their lists in place, in every later step: copy them.
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(scheduler).items()
        if not _same(value, vars(fresh).get(name))
    }


def restore_solver(fresh: Scheduler, state: dict[str, object]) -> Scheduler:
    """Set a new scheduler to a state that `solver_state` returned, and return the scheduler."""
    copied = {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
    vars(fresh).update(copied)
    return fresh


def _same(value: object, other: object) -> bool:
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(_same, value, other))
    # `==` would compare tensors and arrays value by value.
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    return type(value) is type(other) and bool(value == other)
