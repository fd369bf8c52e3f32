"""Which device a rank computes on."""

from __future__ import annotations

import os

import torch

SHARE_GPUS = "NCCL_MULTI_RANK_GPU_ENABLE"
"""The environment variable by which NCCL, from 2.30 on, lets ranks share a GPU; it refuses them without."""


def device_of(local_rank: int) -> torch.device:
    """A rank's, by its number among those of its machine."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def may_share_gpus() -> bool:
    """Whether the user wants ranks to share GPUs. It tries much on one GPU, and is slower than one rank."""
    return os.environ.get(SHARE_GPUS, "0") != "0"
