"""Report of this machine's devices and software, what ParaDiT can use, and what would make it faster.

Checks are independent: if a check fails, its error stands in place of its result, and the other checks still
run.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch

from paradit import __version__
from paradit.attention_backends import ATTENTION_BACKENDS
from paradit.device_memory import total_memory_bytes
from paradit.devices import num_gpus
from paradit.engine.launchers import num_cores, threads_per_rank
from paradit.engine.machine import cpu_name, driver_version
from paradit.engine.microbenchmarks import calibrate_links
from paradit.progress import Progress
from paradit.video.writer import FORMATS, open_video

T = TypeVar("T")
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "av", "numpy")
FASTER = {
    "flash_attn_interface": (
        9,
        "flash-attn 3 (from its repository's folder hopper): --attention-backend _flash_3",
    ),
    "sageattention": (8, "pip install sageattention: --attention-backend sage (quantised: not exact)"),
}
"""Mapping from the name of an attention package worth installing to a pair: the smallest compute capability
(major version number) of a GPU that the package needs, and how to install it."""


def examine() -> dict[str, Any]:
    """Run all checks of this machine; return their results by name, {"error": message} for a failed one."""
    checks: dict[str, Callable[[], Any]] = {
        "versions": _versions,
        "devices": _devices,
        "links": _links,
        "attention_backends": _attention_backends,
        "formats": _formats,
    }
    found = {name: _tried(check) for name, check in checks.items()}
    found["use"] = _tried(_use)
    found["warnings"] = _tried(lambda: _warnings(found))
    found["faster"] = _tried(_faster)
    return found


def _tried(check: Callable[[], T]) -> T | dict[str, str]:
    try:
        return check()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"paradit": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {**found, "cuda": torch.version.cuda, "driver": driver_version()}


def _devices() -> list[dict[str, Any]]:
    memory = total_memory_bytes(torch.device("cpu"))
    found: list[dict[str, Any]] = [
        {"kind": "cpu", "name": cpu_name(), "cores": num_cores(), "memory_bytes": memory}
    ]
    for index in range(num_gpus()):
        about = torch.cuda.get_device_properties(index)
        found.append({
            "kind": "cuda",
            "name": about.name,
            "memory_bytes": about.total_memory,
            "capability": f"{about.major}.{about.minor}",
            "units": about.multi_processor_count,
        })  # fmt: skip
    return found


def _links() -> dict[str, Any] | None:
    """Return latency (s) and rates (bytes/s) of messages between all GPUs, or between two CPU processes.

    Returns None if there is one GPU or one core, because then there is no link to measure.
    """
    gpus = num_gpus()
    if gpus == 1 or num_cores() == 1:
        return None
    ranks = gpus or 2
    messages = calibrate_links(ranks, Progress())
    return {
        "ranks": ranks,
        "over": "NCCL" if gpus else "gloo",
        "latency_seconds": messages.latency,
        "pair_bytes_per_second": messages.pair,
        "neighbours_bytes_per_second": messages.neighbours,
        "all_bytes_per_second": messages.all,
    }


def _attention_backends() -> dict[str, str]:
    """Return the state of each attention backend by name: `ready`, or what is missing."""
    found = {}
    for name, backend in ATTENTION_BACKENDS.items():
        if backend.package is not None and find_spec(backend.package) is None:
            found[name] = f"needs the package {backend.package}"
        elif not backend.cpu and not torch.cuda.is_available():
            found[name] = "needs a GPU"
        else:
            found[name] = "ready"
    return found


def _formats() -> dict[str, str]:
    """Return the state of each video format by suffix: `ready`, or why a frame could not be written.

    A frame of each is written, because whether a codec works depends on the system.
    """
    found = {}
    with TemporaryDirectory(prefix="paradit-") as folder:
        for suffix in FORMATS:
            try:
                with open_video(Path(folder) / f"frame{suffix}", 16, 16, 8) as video:
                    video.write(np.zeros((16, 16, 3), np.uint8))
                found[suffix] = "ready"
            except Exception as error:
                found[suffix] = f"{type(error).__name__}: {error}"
    return found


def _use() -> dict[str, Any]:
    gpus = num_gpus()
    ranks = gpus or num_cores()
    return {
        "device": "cuda" if gpus else "cpu",
        "ranks": ranks,
        "threads_per_rank": threads_per_rank(ranks),
        "dtype": "bf16" if gpus else "fp32",
        "command": f"paradit generate PROMPT --ranks {ranks}" if ranks > 1 else "paradit generate PROMPT",
    }


def _warnings(found: dict[str, Any]) -> list[str]:
    said = []
    if not torch.cuda.is_available():
        if driver := driver_version():
            why = (
                "is built without CUDA" if torch.version.cuda is None else "cannot use it; it may be too old"
            )
            said.append(f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} {why}")
        else:
            said.append("no GPU: only small models run in reasonable time")
    if os.environ.get("OMP_NUM_THREADS"):
        said.append(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}: each rank uses that many threads")
    said += [
        f"the package {name} is missing"
        for name, known in found["versions"].items()
        if known is None and name in PACKAGES
    ]
    for suffix, state in found["formats"].items():
        if state != "ready" and suffix in FORMATS:
            said.append(f"{suffix} files cannot be written: {state}; install PyAV's wheel: pip install av")
    for name, part in found.items():
        if isinstance(part, dict) and "error" in part:
            said.append(f"{name} could not be checked: {part['error']}")
    return said


def _faster() -> list[str]:
    """Return advice on what to install to go faster, one line for each package."""
    if not torch.cuda.is_available():
        return ["a GPU with CUDA, and torch built for it: https://pytorch.org/get-started"]
    capability = torch.cuda.get_device_capability()[0]
    return [how for package, (least, how) in FASTER.items() if capability >= least and not find_spec(package)]
