"""Time embeddings of a Wan transformer, and the shifts, scales and gates that its layers make of them.

If tokens have timesteps of their own, only a few of these differ: at most one for each frame. So they are
embedded in a small table, and layers look up each token's row when they need it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from diffusers.models.transformers.transformer_wan import WanTimeTextImageEmbedding
from torch import Tensor
from torch.nn.functional import embedding

from paradit.models.spec import LEAST_ROWS


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """Table of N time embeddings, and the number of the row that each token reads."""

    temb: Tensor
    """Time embeddings for the transformer's output head: [N, width]."""
    rows: Tensor
    """Shifts, scales and gates for the transformer blocks, in fp32: [N, 6, width]."""
    index: Tensor | None
    """Number of each token's row, [B, S]; None: N is B, and all tokens of a video read its row."""

    def shard(self, start: int, stop: int) -> Self:
        """Return the modulation of tokens `start` to `stop` (excluded)."""
        return self if self.index is None else replace(self, index=self.index[:, start:stop])

    def repeated(self, times: int) -> Self:
        """Return the modulation of a batch in which the videos are repeated `times` times."""
        if self.index is not None:
            return replace(self, index=torch.cat([self.index] * times))
        return replace(self, temb=torch.cat([self.temb] * times), rows=torch.cat([self.rows] * times))


def modulation(
    embedder: WanTimeTextImageEmbedding,
    timestep: Tensor,
    dtype: torch.dtype,
    *,
    frame: Tensor,
    grid: tuple[int, int, int],
) -> Modulation:
    """Embed the timesteps of tokens.

    timestep: the timesteps [B] of whole videos, or [B, F] of their frames, or [B, S] of their tokens. dtype:
    the dtype of the tokens. frame: the index of each token's frame, [S]. grid: the number of the whole
    video's tokens along (F, height, width).
    """
    if timestep.ndim == 1:
        return _table(embedder, timestep, dtype, None)
    frames, height, width = grid
    if timestep.shape[1] == frames:
        batch = torch.arange(len(timestep), device=frame.device)
        distinct, index = timestep.flatten(), batch[:, None] * frames + frame
    else:
        distinct, index = timestep.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    # At least so many rows that products round as if there were a row for each token.
    least = min(LEAST_ROWS, len(timestep) * frames * height * width)
    padding = distinct.new_zeros(max(0, least - len(distinct)))
    return _table(embedder, torch.cat([distinct, padding]), dtype, index)


def _table(
    embedder: WanTimeTextImageEmbedding, timestep: Tensor, dtype: torch.dtype, index: Tensor | None
) -> Modulation:
    frequencies = embedder.timesteps_proj(timestep)
    weight = next(embedder.time_embedder.parameters())
    if weight.dtype != torch.int8:  # int8 weights are quantised, but their inputs are not
        frequencies = frequencies.to(weight.dtype)
    temb = embedder.time_embedder(frequencies).to(dtype)
    projected = embedder.time_proj(embedder.act_fn(temb))
    return Modulation(temb=temb, rows=projected.unflatten(-1, (6, -1)).float(), index=index)


def modulated(normed: Tensor, shift: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
    """Scale and shift normed tokens [B, S, width] in place, and return them.

    shift, scale: tables [N, width]. index: see `Modulation.index`.
    """
    # One after the other, so that only one of the two exists for every token.
    normed.mul_(of_tokens(1 + scale, index))
    return normed.add_(of_tokens(shift, index))


def of_tokens(table: Tensor, index: Tensor | None) -> Tensor:
    """Return the row of a table [N, width] that each token reads: [B, S, width], or [B, 1, width].

    index: see `Modulation.index`.
    """
    return table.unsqueeze(1) if index is None else embedding(index, table)
