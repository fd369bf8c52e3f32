"""Latents that arrive a few frames at a time, so that decoding can start while denoising continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
from torch import Tensor


class LatentBlocks:
    """Stream of a video's latents [1, C, F, h, w], which arrive one block of frames at a time.

    A block is requested from the stream's source only when all earlier blocks have been used.
    """

    def __init__(self, shape: tuple[int, ...], blocks: Iterable[Tensor], *, endless: bool = False) -> None:
        """Wrap an iterable of blocks of latent frames.

        shape: the shape [1, C, F, h, w] of all latents together. endless: whether the video has no set end; F
        is then more frames than will ever arrive.
        """
        self.endless = endless
        self.shape = shape
        self._blocks: Iterator[Tensor] = iter(blocks)
        # A generator: it reads `self._blocks` only when a frame is requested, so `wait` may replace it until
        # then.
        self._frames = self._split()
        self._index, self._frame = -1, torch.empty(0)

    def _split(self) -> Iterator[Tensor]:
        for block in self._blocks:
            yield from torch.split(block, 1, dim=2)

    def wait(self) -> None:
        """Wait until the first block of frames has arrived, or until it is known that none will."""
        # Take the first block from the source, and put it back in front of the others.
        self._blocks = chain(list(islice(self._blocks, 1)), self._blocks)

    def frame(self, index: int) -> Tensor | None:
        """Return latent frame `index`, [1, C, 1, h, w]; None if the video has ended.

        index: the index of the next frame, or of the frame that was requested last.
        """
        if index == self._index + 1:
            frame = next(self._frames, None)
            if frame is None:
                return None
            self._index, self._frame = index, frame
            if index + 1 == self.shape[2]:
                next(self._frames, None)  # nothing is left, but this lets the generator of blocks finish
        assert index == self._index, f"frame {index} was requested after frame {self._index}"
        return self._frame

    def mapped(self, change: Callable[[Tensor], Tensor]) -> LatentBlocks:
        """Return a stream of the remaining latents, with a function applied to each block as it arrives.

        change: the function, which must keep the shape of a block.
        """
        return LatentBlocks(self.shape, map(change, self._blocks), endless=self.endless)


def in_blocks(latents: Tensor | LatentBlocks) -> LatentBlocks:
    """Return latents as a stream (`LatentBlocks`); a tensor, which is complete, becomes a single block."""
    return latents if isinstance(latents, LatentBlocks) else LatentBlocks(tuple(latents.shape), [latents])
