"""Names of this machine's devices and of NVIDIA's driver, as torch and the system report them."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch


def device_name() -> str:
    """Return the name of the GPU, or of the processor if there is no GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()


def cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, even if torch cannot use it; None if there is no driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.splitlines()[0].strip()
    return None
