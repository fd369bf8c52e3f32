"""The noise that a video begins as."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def initial_noise(shape: Sequence[int], seed: int, device: torch.device) -> Tensor:
    """fp32, drawn on the CPU, so that a seed means the same everywhere; as diffusers' pipelines draw it."""
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed)).to(device)
