"""How much memory there is, and how much this process has needed."""

from __future__ import annotations

import contextlib
import ctypes
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


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep what tensors free, for the next ones, in this process.

    By default it gives large pieces back to the system each time, which fills them with zeros, page by page,
    when they are wanted again: in every layer of every step.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        for size in (2**25, 2**31 - 1):  # older versions take no more than the first
            mallopt(_M_MMAP_THRESHOLD, size)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
