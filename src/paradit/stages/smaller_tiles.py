"""Smaller tiles, for a stage of the VAE that starts again because memory ran out."""

from __future__ import annotations

from typing import Literal

from paradit.config.errors import OutOfMemory
from paradit.models.vae_spec import VaeSpec
from paradit.progress import Progress


def smaller_tile(
    vae: VaeSpec,
    size: tuple[int, int],
    tile: int | None,
    doing: Literal["decoding", "encoding"],
    progress: Progress,
    *,
    can_repeat: bool = True,
) -> int:
    """Return the next smaller `vae_tile`, and warn that the stage starts again with it.

    size: (height, width) of the picture, in pixels. tile: the `vae_tile` with which memory ran out; None:
    whole pictures. can_repeat: whether the stage can start again. Raises OutOfMemory if it cannot, or if
    tiles cannot be smaller.
    """
    cover, side_of = (vae.grid, int) if doing == "decoding" else (vae.encode_grid, vae.encode_side)
    grid, smaller = cover(*size, tile), vae.smaller_tile(*size, tile)
    # A tile to encode may be larger than one to decode, and hold the whole picture for longer.
    while smaller is not None and cover(*size, smaller).largest_area >= grid.largest_area:
        smaller = vae.smaller_tile(*size, smaller)
    how = "whole pictures" if tile is None or grid.num_tiles == 1 else f"in tiles of {side_of(tile)} pixels"
    said = f"memory ran out while {doing} {how}"
    if smaller is None:
        raise OutOfMemory(f"{said}, and there are no smaller tiles")
    if not can_repeat:
        raise OutOfMemory(f"{said}: use a vae_tile of {smaller}")
    progress.warn(f"{said}: {doing} again in tiles of {side_of(smaller)} pixels")
    return smaller
