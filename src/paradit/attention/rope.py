"""Rotary position embedding (RoPE, arXiv 2104.09864), applied to tokens at given positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rope:
    """RoPE rotations of some tokens: one angle for each pair of neighbouring channels of a head."""

    positions: Tensor
    """Position of each token in the video, [S, axes]."""
    cos: Tensor
    """Cosines of the angles, [1, S, 1, D], the same for both channels of a pair."""
    sin: Tensor
    """Sines of the angles, [1, S, 1, D], negated for the first of the two channels of a pair."""

    def apply(self, x: Tensor) -> Tensor:
        """Return x [B, S, H, D], rotated, in its own dtype; computed in the dtype of `cos` and `sin`."""
        # Swapping the pairs first keeps the arithmetic on contiguous values: half the time of strided halves.
        swapped = torch.empty_like(x, dtype=self.sin.dtype)
        swapped[..., 0::2] = x[..., 1::2]
        swapped[..., 1::2] = x[..., 0::2]
        return (x * self.cos).add_(swapped.mul_(self.sin)).to(x.dtype)

    def shard(self, start: int, stop: int) -> Rope:
        """Return the RoPE rotations of tokens `start` to `stop` (excluded)."""
        return Rope(
            positions=self.positions[start:stop], cos=self.cos[:, start:stop], sin=self.sin[:, start:stop]
        )

    def followed_by(self, other: Rope) -> Rope:
        """Return the RoPE rotations of these tokens followed by those of `other`."""
        return Rope(
            positions=torch.cat([self.positions, other.positions]),
            cos=torch.cat([self.cos, other.cos], dim=1),
            sin=torch.cat([self.sin, other.sin], dim=1),
        )


@dataclass(frozen=True, kw_only=True)
class RopeTables:
    """Tables of RoPE rotations at all positions, by axis of the video; each axis has its own channels."""

    cos: tuple[Tensor, ...]
    """Cosines of the angles, one tensor [positions, channels of the axis] per axis, arranged as in `Rope`."""
    sin: tuple[Tensor, ...]

    def at(self, positions: Tensor) -> Rope:
        """Return the RoPE rotations of tokens at the integer `positions` [S, axes]."""
        return Rope(positions=positions, cos=_gather(self.cos, positions), sin=_gather(self.sin, positions))


def _gather(tables: tuple[Tensor, ...], positions: Tensor) -> Tensor:
    by_axis = [table[index] for table, index in zip(tables, positions.unbind(1), strict=True)]
    return torch.cat(by_axis, dim=1)[None, :, None]


def grid_positions(grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Return the positions [F*H*W, 3] of the tokens of a video of (F, H, W) tokens, in token order."""
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.cartesian_prod(*axes)
