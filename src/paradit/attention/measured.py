"""Measurement of how long attention takes on this device, by the shapes of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from paradit.attention.base import Kernel
from paradit.attention.grouped import attended
from paradit.attention.patterns import Pattern
from paradit.distributed.timing import seconds


class MeasuredKernel:
    """Attention function whose time is measured on demand, once for each pattern and input shapes."""

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self._kernel, self._device = kernel, device
        self._seconds: dict[tuple[torch.Size, torch.Size, Pattern | None], float] = {}

    def seconds(self, query: Tensor, key: Tensor, pattern: Pattern | None = None) -> float:
        """Return the seconds of attention with queries and keys of the given shapes, [B, S, H, D].

        Only the shapes and the query's dtype are used, so the tensors may be on device "meta". pattern: which
        keys each query sees; None: all.
        """
        shapes = query.shape, key.shape
        if (*shapes, pattern) not in self._seconds:
            q, k = (torch.randn(shape, dtype=query.dtype, device=self._device) for shape in shapes)
            taken = seconds(lambda: attended(self._kernel, pattern, q, k, k), self._device)
            self._seconds[(*shapes, pattern)] = taken
        return self._seconds[(*shapes, pattern)]
