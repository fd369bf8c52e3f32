"""Compare the speed of two versions: seconds of whole commands, which take turns within one run.

    python benchmarks/compare_speed.py OLD NEW [--turns 7] [--only NAME ...]

OLD and NEW are folders that hold `paradit`, such as the `src` of two checkouts. A command's seconds go from
its first request to its last result, without loading. The script prints and keeps the ratios of the shortest
times and of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import write_results

COMMANDS = {
    "one process": "generate 'a red circle' --num-inference-steps 12",
    "two ranks, Ulysses": "generate 'a red circle' --num-inference-steps 12 --ranks 2 --attention ulysses",
    "stages apart, six prompts": (
        "generate --prompts-file prompts.txt --num-inference-steps 6 --placement 'denoise=0 decode=1'"
    ),
    "long video, two ranks": (
        "generate 'a red circle' --method dualparal --num-frames 129 --num-inference-steps 6 --ranks 2"
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=[*COMMANDS])
    options = parser.parse_args()
    results = {}
    for name in options.only:
        taken: dict[str, list[float]] = {"old": [], "new": []}
        for turn in range(options.turns + 1):
            # The order alternates, so that a drift of the machine's speed favours no variant.
            for version in ("old", "new") if turn % 2 else ("new", "old"):
                seconds = run(getattr(options, version).resolve(), COMMANDS[name])
                if turn:  # the first turn fills the disk's caches
                    taken[version].append(seconds)
        ratios = {
            about: function(taken["new"]) / function(taken["old"])
            for about, function in (("shortest", min), ("median", median))
        }
        results[name] = {"command": COMMANDS[name], "seconds": taken, "new / old": ratios}
        said = "   ".join(f"{about} {ratio:.3f}" for about, ratio in ratios.items())
        print(
            f"{name:<28} {min(taken['old']):6.2f} s -> {min(taken['new']):6.2f} s   new / old: {said}",
            flush=True,
        )
    write_results("compare_speed", {"turns": options.turns, "results": results})


def run(source: Path, command: str) -> float:
    """Return the seconds from a command's first request to its last result."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prompts.txt").write_text("\n".join(["a red circle", "a blue square"] * 3))
        words = [sys.executable, "-m", "paradit", *shlex.split(command), "--json", "-o", "v.mp4"]
        with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)["event"]
                if event == "request":
                    times.setdefault("begin", time.perf_counter())
                elif event == "result":
                    times["end"] = time.perf_counter()
        if process.returncode:
            raise RuntimeError(f"{source}: {command!r} has ended with exit code {process.returncode}")
    return times["end"] - times["begin"]


if __name__ == "__main__":
    main()
