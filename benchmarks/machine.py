"""Description of the machine that a benchmark ran on, and the file with its results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return the processor, cores, GPU if any, and the versions that affect results."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def command() -> str:
    """Return the command line that started this benchmark, relative to the repository."""
    script = Path(sys.argv[0]).resolve()
    root = RESULTS.parent.parent
    name = script.relative_to(root) if script.is_relative_to(root) else script.name
    return " ".join(["python", str(name), *map(_without_machine, sys.argv[1:])])


def _without_machine(word: str) -> str:
    """Return a word of a command line; of an absolute path, only its last two parts."""
    path = Path(word)
    return str(Path("...", *path.parts[-2:])) if path.is_absolute() else word


def commit() -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return done.stdout.strip() or None


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Write `results/NAME.json` with the machine, the commit and the command."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"command": command(), "commit": commit(), "machine": machine(), **results}
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"\n{path}")
    return path
