"""What an attention kernel takes, by the shapes that it gets."""

from __future__ import annotations

import torch
from torch import Tensor

from paradit.attention.base import Kernel
from paradit.distributed.timing import seconds


class MeasuredKernel:
    """A kernel's seconds by the shapes that it gets; each is measured when it is first asked for."""

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self._kernel, self._device = kernel, device
        self._seconds: dict[tuple[torch.Size, torch.Size], float] = {}

    def seconds(self, query: Tensor, key: Tensor) -> float:
        """Of empty queries and keys [B, S, H, D]."""
        shapes = query.shape, key.shape
        if shapes not in self._seconds:
            q, k = (torch.randn(shape, dtype=query.dtype, device=self._device) for shape in shapes)
            self._seconds[shapes] = seconds(lambda: self._kernel(q, k, k), self._device)
        return self._seconds[shapes]
