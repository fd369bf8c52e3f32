"""What a run over frame blocks holds between two rounds: enough to go on from there, with the same bits.

Plain values and tensors. The noise of blocks to come is not among them: it follows from the seed and a
block's number. Nor are the right neighbours' keys: every round begins without any.
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
from paradit.parallel.team import Team
from paradit.sampling.position import as_tensor

HeadFeatures = dict[tuple[int, str, int], tuple[Tensor, Tensor]]
"""By (layer, name of the attention, head): keys, before RoPE, and values [B, S, D] of some tokens."""


@dataclass(frozen=True, kw_only=True)
class BlockState:
    """A frame block between two steps."""

    level: Annotated[int, Option(least=0)]
    """How many steps it has taken."""
    latents: Tensor
    """[1, C, F, h, w], fp32."""
    before: Tensor | None
    """The same one step earlier, for a right neighbour that reads its own level."""
    solver: dict[str, object]
    """What the block's own scheduler remembers."""


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """A run between two rounds, as one rank holds it; on the first rank with the blocks."""

    round: int
    """The next one."""
    blocks: dict[int, BlockState] = field(default_factory=dict)
    """By number: those in the queue, and the last one that left it, which is still read."""
    left_features: dict[tuple[int, int], HeadFeatures] = field(default_factory=dict)
    """By (block, guidance branch), of the layers and heads that the rank has; only where the left context
    comes from the cache, since its keys cannot be computed once more."""

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it."""
        buffer = io.BytesIO()
        blocks = {number: vars(block) for number, block in self.blocks.items()}
        torch.save({**vars(self), "blocks": blocks}, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, device: torch.device | None = None) -> QueueState:
        """Read a state, onto a device. Raises InputError, or what torch raises, for anything else."""
        found = torch.load(io.BytesIO(content), map_location=device or "cpu", weights_only=True)
        state = decode(_Stored, found)
        return cls(
            round=state.round,
            blocks={number: decode(BlockState, block) for number, block in state.blocks.items()},
            left_features={of: _named(parts) for of, parts in state.left_features.items()},
        )


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A state as `to_bytes` writes it."""

    round: Annotated[int, Option(least=0)]
    blocks: dict[int, dict[str, object]]
    left_features: dict[tuple[int, int], dict[tuple[int | str, ...], tuple[Tensor, Tensor]]]


def shared_state(state: QueueState | None, team: Team, device: torch.device) -> QueueState | None:
    """The first process's, on all of a team."""
    content = state.to_bytes() if state and team.is_first else b""
    size, *_ = team.gather_number(len(content))
    if not size:
        return None
    kept = team.share(lambda: as_tensor(content, device), (size,), torch.uint8, device)
    return QueueState.from_bytes(kept.cpu().numpy().tobytes(), device)


def _named(features: Mapping[tuple[int | str, ...], tuple[Tensor, Tensor]]) -> HeadFeatures:
    """Features by attention; 0.1 had one in each block, which it did not name."""
    found: HeadFeatures = {}
    for (layer, *name, head), parts in features.items():
        found[int(layer), str(name[0]) if name else Site(0).name, int(head)] = parts
    return found


def solver_state(scheduler: Scheduler, fresh: Scheduler) -> dict[str, object]:
    """What a diffusers scheduler has come to remember since it was as `fresh`."""
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in vars(scheduler).items()
        if not _same(value, vars(fresh).get(name))
    }


def restore_solver(fresh: Scheduler, state: dict[str, object]) -> Scheduler:
    """A scheduler that remembers it again."""
    copied = {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
    vars(fresh).update(copied)
    return fresh


def _same(value: object, other: object) -> bool:
    if isinstance(value, list | tuple) and isinstance(other, list | tuple):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    return type(value) is type(other) and bool(value == other)
