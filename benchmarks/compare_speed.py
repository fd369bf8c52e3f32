"""Compare the speed of two versions: seconds of whole commands, which take turns within one run.

    python benchmarks/compare_speed.py OLD NEW [--turns 7] [--only NAME ...]

OLD and NEW are folders that hold `paradit`, such as the `src` of two checkouts. A command's seconds go from
its first request to its last result, without loading. The script prints and keeps the ratios of the shortest
times and of the medians, and the shortest seconds of each stage, which other programs on the machine disturb
least.
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
from collections import Counter
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
        stages: dict[str, dict[str, float]] = {"old": {}, "new": {}}
        for turn in range(options.turns + 1):
            # The order alternates, so that a drift of the machine's speed favours no variant.
            for version in ("old", "new") if turn % 2 else ("new", "old"):
                seconds, by_stage = run(getattr(options, version).resolve(), COMMANDS[name])
                if turn:  # the first turn fills the disk's caches
                    taken[version].append(seconds)
                    shortest = stages[version]
                    stages[version] = {one: min(shortest.get(one, t), t) for one, t in by_stage.items()}
        ratios = {
            about: function(taken["new"]) / function(taken["old"])
            for about, function in (("shortest", min), ("median", median))
        }
        by_stage = {one: t / stages["old"][one] for one, t in stages["new"].items() if one in stages["old"]}
        results[name] = {
            "command": COMMANDS[name],
            "seconds": taken,
            "new / old": ratios,
            "shortest by stage": stages,
            "new / old by stage": by_stage,
        }
        said = "   ".join(f"{about} {ratio:.3f}" for about, ratio in ratios.items())
        print(
            f"{name:<28} {min(taken['old']):6.2f} s -> {min(taken['new']):6.2f} s   new / old: {said}",
            flush=True,
        )
        print("    by stage:", *(f"{one} {ratio:.3f}" for one, ratio in by_stage.items()), flush=True)
    write_results("compare_speed", {"turns": options.turns, "results": results})


def run(source: Path, command: str) -> tuple[float, dict[str, float]]:
    """Return the seconds from a command's first request to its last result, and those of each stage."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    times, stages = {}, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "prompts.txt").write_text("\n".join(["a red circle", "a blue square"] * 3))
        words = [sys.executable, "-m", "paradit", *shlex.split(command), "--json", "-o", "v.mp4"]
        with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "request":
                    times.setdefault("begin", time.perf_counter())
                elif event["event"] == "result":
                    times["end"] = time.perf_counter()
                    stages.update(event["seconds"])
        if process.returncode:
            raise RuntimeError(f"{source}: {command!r} has ended with exit code {process.returncode}")
    return times["end"] - times["begin"], dict(stages)


if __name__ == "__main__":
    main()
