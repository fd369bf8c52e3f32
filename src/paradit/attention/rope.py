"""Rotary position embedding (arXiv 2104.09864), applied from explicit positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotations of some tokens: one angle for each pair of neighbouring channels of a head."""

    positions: Tensor
    """[S, axes], where each token is in the video."""
    cos: Tensor
    """[1, S, 1, D], the same for both channels of a pair."""
    sin: Tensor
    """[1, S, 1, D], negative for the first channel of a pair."""

    def apply(self, x: Tensor) -> Tensor:
        """x [B, S, H, D], rotated; in the dtype of x, computed in that of the tables."""
        # With the pairs swapped first, arithmetic is on contiguous values: half the time of strided halves.
        swapped = torch.empty_like(x, dtype=self.sin.dtype)
        swapped[..., 0::2] = x[..., 1::2]
        swapped[..., 1::2] = x[..., 0::2]
        return (x * self.cos).add_(swapped.mul_(self.sin)).to(x.dtype)

    def shard(self, start: int, stop: int) -> Rope:
        """The rotations of tokens start to stop."""
        return Rope(
            positions=self.positions[start:stop], cos=self.cos[:, start:stop], sin=self.sin[:, start:stop]
        )

    def followed_by(self, other: Rope) -> Rope:
        """The rotations of both's tokens."""
        return Rope(
            positions=torch.cat([self.positions, other.positions]),
            cos=torch.cat([self.cos, other.cos], dim=1),
            sin=torch.cat([self.sin, other.sin], dim=1),
        )


@dataclass(frozen=True, kw_only=True)
class RopeTables:
    """The rotations of every position, by axis: each axis of the video has its own channels of a head."""

    cos: tuple[Tensor, ...]
    """One [positions, channels of the axis] for each axis, as is `sin`; both as in `Rope`."""
    sin: tuple[Tensor, ...]

    def at(self, positions: Tensor) -> Rope:
        """The rotations of tokens at `positions` [S, axes], integers."""
        return Rope(positions=positions, cos=_gather(self.cos, positions), sin=_gather(self.sin, positions))


def _gather(tables: tuple[Tensor, ...], positions: Tensor) -> Tensor:
    by_axis = [table[index] for table, index in zip(tables, positions.unbind(1), strict=True)]
    return torch.cat(by_axis, dim=1)[None, :, None]


def grid_positions(grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Positions [F*H*W, 3] of the tokens of a video of (F, H, W) tokens, in the order of the tokens."""
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.cartesian_prod(*axes)
