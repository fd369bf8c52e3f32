"""A video's latents as they come, so that it is decoded while it is still being made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor


class LatentBlocks:
    """Latents [1, C, F, h, w] in blocks of frames; a block is asked for when those before it are used up."""

    def __init__(self, shape: tuple[int, ...], blocks: Iterable[Tensor], *, endless: bool = False) -> None:
        """shape: [1, C, F, h, w], of all. endless: F is more than ever come."""
        self.endless = endless
        self.shape = shape
        self._blocks: Iterator[Tensor] = iter(blocks)
        self._frames = self._split()
        self._index, self._frame = -1, torch.empty(0)

    def _split(self) -> Iterator[Tensor]:
        for block in self._blocks:
            yield from torch.split(block, 1, dim=2)

    def wait(self) -> None:
        """Return once the first block is there, or it is known that none comes."""
        self._blocks = chain(list(islice(self._blocks, 1)), self._blocks)

    def frame(self, index: int) -> Tensor | None:
        """[1, C, 1, h, w]: the next frame, or the one that was asked for last. None: the video has ended."""
        if index == self._index + 1:
            frame = next(self._frames, None)
            if frame is None:
                return None
            self._index, self._frame = index, frame
            if index + 1 == self.shape[2]:
                next(self._frames, None)  # there is none; whoever makes the blocks comes to its end
        assert index == self._index, f"frame {index} is asked for after {self._index}"
        return self._frame

    def mapped(self, change: Callable[[Tensor], Tensor]) -> LatentBlocks:
        """What is left, each block as `change` makes it when it comes; of the same shape."""
        return LatentBlocks(self.shape, map(change, self._blocks), endless=self.endless)


def in_blocks(latents: Tensor | LatentBlocks) -> LatentBlocks:
    """Latents that are all there, as if they came."""
    return latents if isinstance(latents, LatentBlocks) else LatentBlocks(tuple(latents.shape), [latents])
