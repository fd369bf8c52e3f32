"""GPUs of this machine: how many there are, whether that is enough, and which one a rank computes on."""

from __future__ import annotations

import os

import torch

SHARE_GPUS = "NCCL_MULTI_RANK_GPU_ENABLE"
"""Environment variable that lets ranks share a GPU, with NCCL 2.30 or later; else NCCL refuses."""


def num_gpus() -> int:
    """Return the number of GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def visible_ranks() -> int:
    """Return the number of ranks that use all of this machine: one for each GPU, or one if there is none."""
    return max(1, num_gpus())


def device_of(local_rank: int) -> torch.device:
    """Return the device of a rank, by its number among the ranks of its machine."""
    return torch.device("cuda", local_rank % num_gpus()) if num_gpus() else torch.device("cpu")


def lack_gpus(ranks: int) -> bool:
    """Whether ranks on this machine outnumber its GPUs and may not share them; always false on a CPU."""
    return 0 < num_gpus() < ranks and not may_share_gpus()


def may_share_gpus() -> bool:
    """Whether the user lets ranks share GPUs, to try several on one; that is slower than one rank."""
    return os.environ.get(SHARE_GPUS, "0") != "0"
