"""A picture cut into overlapping tiles, and who decodes which. Torch-free.

Tiles are square and three quarters of their side apart, as diffusers' `enable_tiling()` has them: the same
starts, sizes and overlaps as `AutoencoderKLWan.tiled_decode` and `AutoencoderKLHunyuanVideo.tiled_decode`.
"""

from __future__ import annotations

from dataclasses import dataclass

SIDES_APART = 4
"""Tiles overlap by one part of this many of their side, so a side divides into as many."""


@dataclass(frozen=True)
class Span:
    """A tile's stretch along one axis, in latent pixels."""

    start: int
    stop: int
    kept: int
    """How much of it is in the picture: the next tile brings the rest."""
    overlap: int
    """How much of its beginning is blended with the end of the tile before it."""

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Tile:
    """A part of the picture that is decoded by itself."""

    rows: Span
    columns: Span

    @property
    def area(self) -> int:
        """In latent pixels."""
        return self.rows.size * self.columns.size


@dataclass(frozen=True)
class Grid:
    """All tiles of a picture."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def tiles(self) -> list[Tile]:
        """Row by row."""
        return [Tile(rows, columns) for rows in self.rows for columns in self.columns]

    @property
    def area(self) -> int:
        """Of all tiles, in latent pixels; more than the picture's, since they overlap."""
        return sum(tile.area for tile in self.tiles)

    def dealt(self, num_ranks: int) -> list[list[int]]:
        """For each rank the numbers of the tiles that it decodes, in ascending order.

        The largest first, each to the rank with the least area so far: about equal work.
        """
        tiles = self.tiles
        hands: list[list[int]] = [[] for _ in range(num_ranks)]
        areas = [0] * num_ranks
        for number in sorted(range(len(tiles)), key=lambda number: -tiles[number].area):
            rank = areas.index(min(areas))
            hands[rank].append(number)
            areas[rank] += tiles[number].area
        return [sorted(hand) for hand in hands]


def grid(height: int, width: int, side: int | None) -> Grid:
    """The tiles of a picture of `height` x `width` latent pixels; one where it is not larger than a tile.

    side: of a tile, in latent pixels, a multiple of `SIDES_APART`. None: one tile.
    """
    if side is None or max(height, width) <= side:
        return Grid((Span(0, height, height, 0),), (Span(0, width, width, 0),))
    return Grid(_spans(height, side), _spans(width, side))


def _spans(size: int, side: int) -> tuple[Span, ...]:
    stride = side - side // SIDES_APART
    spans = []
    for start in range(0, size, stride):
        stop = min(start + side, size)
        overlap = min(side - stride, stop - start) if start else 0
        spans.append(Span(start, stop, min(stride, size - start), overlap))
    return tuple(spans)
