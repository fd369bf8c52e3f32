"""GPUs of this machine: how many there are, whether that is enough, and which one a rank computes on."""

from __future__ import annotations

import os

import torch

SHARE_GPUS = "NCCL_MULTI_RANK_GPU_ENABLE"
"""The environment variable by which NCCL, from 2.30 on, lets ranks share a GPU; it refuses them without."""


def num_gpus() -> int:
    """Number of GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def visible_ranks() -> int:
    """Number of ranks that use this machine whole: one for each GPU; one if there is none."""
    return max(1, num_gpus())


def device_of(local_rank: int) -> torch.device:
    """Device of a rank, by its number among those of its machine."""
    return torch.device("cuda", local_rank % num_gpus()) if num_gpus() else torch.device("cpu")


def lack_gpus(ranks: int) -> bool:
    """Whether ranks on this machine are more than its GPUs, and may not share these. Any number has a CPU."""
    return 0 < num_gpus() < ranks and not may_share_gpus()


def may_share_gpus() -> bool:
    """Whether the user wants ranks to share GPUs. It tries much on one GPU, and is slower than one rank."""
    return os.environ.get(SHARE_GPUS, "0") != "0"
