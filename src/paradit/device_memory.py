"""Amounts of memory: how much a device has, and how much this process has used."""

from __future__ import annotations

import sys

import psutil
import torch


def total_memory_bytes(device: torch.device) -> int:
    """Return the total memory, in bytes, of a GPU, or of the machine if the device is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return int(psutil.virtual_memory().total)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in use, in bytes: by tensors on a GPU, or by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # KiB on Linux


def ran_out(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on a GPU or for the CPU's tensors."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Messages of torch's allocator for the CPU, and of oneDNN, which computes convolutions.
    said = ("can't allocate memory", "could not create a memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def give_back_unused(device: torch.device) -> None:
    """Release the GPU memory that torch keeps for later use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
