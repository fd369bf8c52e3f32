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


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that there was no memory left, on a GPU or for the CPU's tensors."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What torch's allocator for the CPU says, and oneDNN, which computes convolutions.
    said = ("can't allocate memory", "could not create a memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def give_back_unused(device: torch.device) -> None:
    """Return what torch keeps of a GPU's memory for later use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
