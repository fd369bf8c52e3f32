"""GPUs of this machine: how many there are, whether they suffice for a run, and which one each rank uses."""

from __future__ import annotations

import os

import torch

SHARE_GPUS = "NCCL_MULTI_RANK_GPU_ENABLE"
"""Environment variable that lets several ranks share a GPU; NCCL allows that only from version 2.30."""


def num_gpus() -> int:
    """Return the number of GPUs that this process can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def visible_ranks() -> int:
    """Return how many ranks this machine has room for: one for each GPU, or one if there is no GPU."""
    return max(1, num_gpus())


def device_of(local_rank: int) -> torch.device:
    """Return the device that a rank computes on. local_rank: index of the rank among those of its machine."""
    return torch.device("cuda", local_rank % num_gpus()) if num_gpus() else torch.device("cpu")


def lack_gpus(ranks: int) -> bool:
    """Return whether there are more ranks than GPUs here, and GPUs may not be shared; false on a CPU."""
    return 0 < num_gpus() < ranks and not may_share_gpus()


def may_share_gpus() -> bool:
    """Return whether the user has set the variable `SHARE_GPUS`, so that several ranks may use one GPU.

    That is for trying several ranks on one GPU; it is slower than one rank.
    """
    return os.environ.get(SHARE_GPUS, "0") != "0"
