"""Copies in host memory of what a decoder keeps of a tile's earlier frames, while other tiles are decoded."""

from __future__ import annotations

import torch
from torch import Tensor


def parked(part: Tensor, before: object) -> Tensor:
    """Copy a tensor into host memory, and return the copy.

    before: the earlier copy, whose memory is reused if it is a tensor of the same shape.
    """
    # Reuse matters on a CPU. Otherwise, the caches of many tiles would lie between tensors that are soon
    # freed, and the heap would grow to several times the size of caches and tensors together.
    if isinstance(before, Tensor) and before.shape == part.shape:
        return before.copy_(part)
    return torch.empty(part.shape, dtype=part.dtype).copy_(part)
