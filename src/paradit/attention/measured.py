"""Measurement of how long attention takes on this device, by the shapes of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from paradit.attention.base import Kernel
from paradit.distributed.timing import seconds


class MeasuredKernel:
    """Attention function whose time is measured on demand, once for each combination of input shapes."""

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self._kernel, self._device = kernel, device
        self._seconds: dict[tuple[torch.Size, torch.Size], float] = {}

    def seconds(self, query: Tensor, key: Tensor) -> float:
        """Return the seconds of one call with queries and keys of the given shapes, [B, S, H, D].

        Only the shapes and the query's dtype are used, so the tensors may be on device "meta".
        """
        shapes = query.shape, key.shape
        if shapes not in self._seconds:
            q, k = (torch.randn(shape, dtype=query.dtype, device=self._device) for shape in shapes)
            self._seconds[shapes] = seconds(lambda: self._kernel(q, k, k), self._device)
        return self._seconds[shapes]
