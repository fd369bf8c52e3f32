"""Cached keys and values of the frames at the borders of frame blocks, which neighbouring blocks read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paradit.attention.base import Site
from paradit.attention.window import Features, Kept, Neighbour
from paradit.sampling.block_state import HeadFeatures
from paradit.sampling.block_window import Window
from paradit.scheduling.block_queue import BlockQueue, BlockStep

LastFrames = dict[tuple[int, int], Features]
"""Type of the cached keys and values of frame blocks' last frames, by (frame block, guidance branch)."""


class BorderFeatures:
    """Caches of one rank, for its layers, its attention heads and its guidance branches."""

    def __init__(self, queue: BlockQueue, heads: range, branches: Sequence[int]) -> None:
        """Make empty caches.

        heads: range of the attention heads that this rank computes, in all layers that it holds. branches:
        indices of the guidance branches that it computes.
        """
        self._queue, self._heads, self._branches = queue, heads, branches
        self._right: dict[int, Features] = {branch: {} for branch in branches}
        """For each guidance branch, cached keys and values of the first frames of the frame block whose step
        was computed last. The block to its left takes its step next, and reads them."""
        self._left: LastFrames = {}
        """Cached keys and values of each frame block's last frames after its latest step. The block to its
        right reads them."""

    def neighbours(self, step: BlockStep, branch: int, window: Window) -> list[Neighbour]:
        """Return the neighbouring frame blocks whose keys and values a step reads from these caches.

        branch: index of the guidance branch. window: tokens of the frame block and of the context frames that
        it attends to.
        """
        found = []
        if step.left.source == "cache" and step.left.frames:
            found.append(Neighbour(self._left[step.block - 1, branch], window.left, is_before=True))
        if step.right.source == "cache" and step.right.frames:
            found.append(Neighbour(self._right[branch], window.right, is_before=False))
        return found

    def kept(self, step: BlockStep, branch: int, window: Window) -> list[Kept]:
        """Return the ranges of a step's tokens whose keys and values neighbouring frame blocks will read.

        branch: index of the guidance branch. window: tokens of the frame block and of the context frames that
        it attends to.
        """
        found = []
        start, stop = window.own.start, window.own.stop
        context = window.tokens * min(self._queue.context_frames, step.frames)
        # The block to the left reads these, in this round. The first block has none to its left.
        if context and step.block > 0:
            found.append(Kept(self._right[branch], start, start + context))
        # The block to the right reads these, in later rounds. The last block has none to its right.
        if context and self._queue.left_source == "cache" and step.block + 1 != self._queue.num_blocks:
            features = self._left.setdefault((step.block, branch), {})
            found.append(Kept(features, stop - context, stop))
        return found

    def forget(self, step: BlockStep) -> None:
        """Drop what no step reads after this one."""
        if step.step == self._queue.num_steps - 1:
            for branch in self._branches:
                self._left.pop((step.block - 1, branch), None)

    def last_frames(self) -> LastFrames:
        """Return the present keys and values of frame blocks' last frames; later steps do not change them."""
        return {key: dict(part) for key, part in self._left.items()}

    def by_head(self, features: LastFrames) -> dict[tuple[int, int], HeadFeatures]:
        """Return cached keys and values by head of the whole model, to save them.

        In this form another number of ranks can resume from them.
        """
        return {
            key: {
                (*site, head): (keys[:, :, index], values[:, :, index])
                for site, (keys, values) in part.items()
                for index, head in enumerate(self._heads)
            }
            for key, part in features.items()
        }

    def restore(self, saved: Mapping[tuple[int, int], HeadFeatures], sites: Sequence[Site]) -> None:
        """Take over keys and values that `by_head` returned, as far as this rank needs them.

        sites: the attention operations of this rank's transformer blocks.
        """

        def joined(features: HeadFeatures, site: Site) -> tuple[Tensor, Tensor]:
            parts = (features[(*site.key, head)] for head in self._heads)
            keys, values = zip(*parts, strict=True)
            return torch.stack(keys, dim=2), torch.stack(values, dim=2)

        self._left = {
            (block, branch): {site.key: joined(features, site) for site in sites}
            for (block, branch), features in saved.items()
            if branch in self._branches
        }
