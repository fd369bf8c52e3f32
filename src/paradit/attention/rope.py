"""Rotary position embedding (RoPE, arXiv 2104.09864), applied to tokens at given positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rope:
    """RoPE rotations of some tokens: one angle for each pair of a head's channels."""

    positions: Tensor
    """Position of each token in the video, [S, axes]."""
    cos: Tensor
    """Cosines of the angles, [1, S, 1, D], the same for both channels of a pair."""
    sin: Tensor
    """Sines of the angles, [1, S, 1, D], negated for the first of the two channels of a pair."""
    apart: int = 1
    """Number of channels from the first to the second channel of a pair; 1: they are neighbours.

    Every 2 x `apart` channels hold the first channels of that many pairs, and then the second ones.
    """

    def apply(self, x: Tensor) -> Tensor:
        """Return x [B, S, H, D], rotated, in its own dtype; computed in the dtype of `cos` and `sin`."""
        # Swapping the pairs first keeps the arithmetic on contiguous values: half the time of strided halves.
        swapped = torch.empty_like(x, dtype=self.sin.dtype)
        by_pair = *x.shape[:-1], x.shape[-1] // (2 * self.apart), 2, self.apart
        pairs, others = x.view(by_pair), swapped.view(by_pair)
        others[..., 0, :] = pairs[..., 1, :]
        others[..., 1, :] = pairs[..., 0, :]
        return (x * self.cos).add_(swapped.mul_(self.sin)).to(x.dtype)

    def shard(self, start: int, stop: int) -> Rope:
        """Return the RoPE rotations of tokens `start` to `stop` (excluded)."""
        return replace(
            self,
            positions=self.positions[start:stop],
            cos=self.cos[:, start:stop],
            sin=self.sin[:, start:stop],
        )

    def take(self, held: Tensor) -> Rope:
        """Return the RoPE rotations of some of these tokens. held: their indices among these."""
        return replace(self, positions=self.positions[held], cos=self.cos[:, held], sin=self.sin[:, held])

    def followed_by(self, other: Rope) -> Rope:
        """Return the RoPE rotations of these tokens followed by those of `other`."""
        return replace(
            self,
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
    apart: int = 1
    """Number of channels from the first to the second channel of a pair, as in `Rope`."""

    def at(self, positions: Tensor) -> Rope:
        """Return the RoPE rotations of tokens at the integer `positions` [S, axes]."""
        cos, sin = _gather(self.cos, positions), _gather(self.sin, positions)
        return Rope(positions=positions, cos=cos, sin=sin, apart=self.apart)


def _gather(tables: tuple[Tensor, ...], positions: Tensor) -> Tensor:
    by_axis = [table[index] for table, index in zip(tables, positions.unbind(1), strict=True)]
    return torch.cat(by_axis, dim=1)[None, :, None]


def grid_positions(grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Return the positions [F*H*W, 3] of the tokens of a video of (F, H, W) tokens, in token order."""
    axes = [torch.arange(size, device=device) for size in grid]
    return torch.cartesian_prod(*axes)
