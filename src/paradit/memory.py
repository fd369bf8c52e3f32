"""How much memory there is, and how much this process has needed."""

from __future__ import annotations

import sys

import psutil
import torch


def total_memory_bytes(device: torch.device) -> int:
    """All memory of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was in use: of a GPU by its tensors, else of the process's own memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux
