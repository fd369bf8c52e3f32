"""Overlapping tiles in which the VAE decodes a picture, and their distribution over ranks. Torch-free.

Tiles are squares that start three quarters of their side apart, as diffusers' `enable_tiling()` has them:
starts, sizes and overlaps equal those of `AutoencoderKLWan.tiled_decode` and
`AutoencoderKLHunyuanVideo.tiled_decode`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

SIDES_APART = 4
"""Number of equal parts into which a tile's side divides.

Neighbouring tiles overlap by one part, so they start three parts apart.
"""


@dataclass(frozen=True)
class Span:
    """Extent of a tile along one axis, in latent pixels."""

    start: int
    stop: int
    kept: int
    """Number of the tile's latent pixels, along the axis, that appear in the picture.

    The next tile covers the rest.
    """
    overlap: int
    """Number of latent pixels, along the axis, that overlap the tile before and are blended with it."""

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Tile:
    """Tile of the picture: a rectangle that the VAE decodes by itself."""

    rows: Span
    columns: Span

    @property
    def area(self) -> int:
        """Area of the tile, in latent pixels."""
        return self.rows.size * self.columns.size


@dataclass(frozen=True)
class Grid:
    """Grid of all tiles of a picture: the extent (`Span`) of each row and of each column of tiles."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def tiles(self) -> list[Tile]:
        """All tiles of the picture, row by row."""
        return [Tile(rows, columns) for rows in self.rows for columns in self.columns]

    @property
    def area(self) -> int:
        """Total area of all tiles, in latent pixels; more than the picture's, because tiles overlap."""
        return sum(span.size for span in self.rows) * sum(span.size for span in self.columns)

    @property
    def num_tiles(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def largest_area(self) -> int:
        """Area of the largest tile, in latent pixels."""
        return max(span.size for span in self.rows) * max(span.size for span in self.columns)

    def dealt_areas(self, num_ranks: int) -> list[int]:
        """Return the total area, in latent pixels, of the tiles that each rank decodes; smallest total first.

        The tiles are assigned to ranks as by `dealt`, but are not listed one by one: a huge picture has
        millions of them, but few sizes.
        """
        rows, columns = (Counter(span.size for span in spans) for spans in (self.rows, self.columns))
        numbers: Counter[int] = Counter()
        for (height, down), (width, across) in product(rows.items(), columns.items()):
            numbers[height * width] += down * across
        areas = [0] * num_ranks
        for area in sorted(numbers, reverse=True):
            left = numbers[area]
            while left:
                # If no rank is ahead by more than a tile, each rank gets one before any gets two.
                rounds = left // num_ranks if max(areas) - min(areas) <= area else 0
                if rounds:
                    areas = [so_far + rounds * area for so_far in areas]
                    left -= rounds * num_ranks
                else:
                    areas[areas.index(min(areas))] += area
                    left -= 1
        return sorted(areas)

    def dealt(self, num_ranks: int) -> list[list[int]]:
        """Return, for each rank, the indices in `tiles` of the tiles that it decodes, in ascending order.

        The largest tiles are assigned first, each to the rank with the least area so far, so that ranks have
        about equal work.
        """
        tiles = self.tiles
        hands: list[list[int]] = [[] for _ in range(num_ranks)]
        areas = [0] * num_ranks
        for number in sorted(range(len(tiles)), key=lambda number: -tiles[number].area):
            rank = areas.index(min(areas))
            hands[rank].append(number)
            areas[rank] += tiles[number].area
        return [sorted(hand) for hand in hands]


@lru_cache(maxsize=64)  # a search asks for the same huge picture many times
def grid(height: int, width: int, side: int | None) -> Grid:
    """Return the grid of tiles for a picture of `height` x `width` latent pixels.

    It has a single tile if the picture is no larger than one tile. side: side of a tile in latent pixels, a
    multiple of `SIDES_APART`; None: one tile.
    """
    if side is None or max(height, width) <= side:
        return Grid((Span(0, height, height, 0),), (Span(0, width, width, 0),))
    return Grid(spans(height, side), spans(width, side))


def spans(size: int, side: int) -> tuple[Span, ...]:
    """Return the extents of tiles with side `side` along an axis of `size` latent pixels.

    As in diffusers, a tile begins wherever its start lies within the picture, so an axis that is a little
    shorter than a tile has a second one, too.
    """
    stride = side - side // SIDES_APART
    found = []
    for start in range(0, size, stride):
        stop = min(start + side, size)
        # The last tile may be narrower than the usual overlap.
        overlap = min(side - stride, stop - start) if start else 0
        found.append(Span(start, stop, min(stride, size - start), overlap))
    return tuple(found)
