"""Blending of decoded tiles into whole pictures, and conversion of pictures to frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from paradit.config.tiles import Grid
from paradit.models.protocol import Frames


def join(grid: Grid, pieces: Sequence[Tensor], scale: int) -> Tensor:
    """Join decoded tiles, given row by row, into a picture [B, C, f, H, W]; overwrites the tiles.

    grid: the tiles' positions, in latent pixels. scale: the factor by which decoded tiles are larger than
    latents, along height and width. Along each overlap, the earlier tile fades out linearly: first downwards,
    then to the right. Each tile is blended with neighbours that are already blended. The values are those of
    diffusers' `tiled_decode`, bit for bit.
    """
    if len(pieces) == 1:
        return pieces[0]
    width = len(grid.columns)
    rows = [list(pieces[start : start + width]) for start in range(0, len(pieces), width)]
    for i, (row, span) in enumerate(zip(rows, grid.rows, strict=True)):
        for j, (tile, column) in enumerate(zip(row, grid.columns, strict=True)):
            if i:
                _blend(rows[i - 1][j], tile, span.overlap * scale, dim=-2)
            if j:
                _blend(row[j - 1], tile, column.overlap * scale, dim=-1)
    kept = [
        torch.cat(
            [
                tile[..., : span.kept * scale, : column.kept * scale]
                for tile, column in zip(row, grid.columns, strict=True)
            ],
            dim=-1,
        )
        for row, span in zip(rows, grid.rows, strict=True)
    ]
    return torch.cat(kept, dim=-2)


def as_frames(processor: VideoProcessor, samples: Tensor) -> Frames:
    """Convert a decoder's output [1, 3, f, H, W] to uint8 frames [f, H, W, 3], as diffusers' pipelines do.

    Raises FloatingPointError for NaN, which would become black.
    """
    video = processor.postprocess_video(samples, output_type="np")
    assert isinstance(video, np.ndarray)
    if np.isnan(video).any():
        raise FloatingPointError("the decoded frames are not finite")
    frames: Frames = (video[0] * 255).round().astype("uint8")
    return frames


def _blend(before: Tensor, tile: Tensor, overlap: int, dim: int) -> None:
    """Blend the start of a tile along a dimension, in place, with the end of the tile before it.

    before: the tile above it or to its left. overlap: the number of rows or columns that the two tiles share.
    dim: the dimension.
    """
    end = before.narrow(dim, before.shape[dim] - overlap, overlap)
    begin = tile.narrow(dim, 0, overlap)
    weights = torch.tensor([index / overlap for index in range(overlap)], dtype=torch.float64)
    if dim == -2:
        weights = weights[:, None]
    # Weights are rounded only once, as diffusers' Python numbers are when they scale a row.
    begin.copy_(end * (1 - weights).to(tile) + begin * weights.to(tile))
