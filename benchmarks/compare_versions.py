"""Compare two versions: latents, frames, `--json` lines, exit codes and errors of a dozen commands.

    python benchmarks/compare_versions.py OLD NEW [--only NAME ...]

OLD and NEW are git revisions, or folders with a `src`. Every command runs with the bundled model in a folder
of its own, with one thread per process. What depends on the clock, on memory or on chance is removed from the
lines. Lines of several ranks come in any order, so they are compared as multisets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paradit.video.reader import read_video

FILES = "--num-inference-steps 4 --latents l.safetensors -o v.mp4 --json"
SHORT = f"--num-frames 9 {FILES}"
LONG = f"--method dualparal --num-frames 129 {FILES}"
MANY = f"--prompts-file prompts.txt {SHORT}"
PROMPT = "'a red circle moving right on a dark background'"

COMMANDS = {
    "one process": [f"generate {PROMPT} {SHORT} --ranks 1"],
    "two ranks": [f"generate {PROMPT} {SHORT} --ranks 2 --attention ulysses"],
    "three ranks, PipeSP": [
        f"generate {PROMPT} {SHORT} --ranks 3 --attention pipesp --chunks 2 --interleave"
    ],
    "four ranks, USP": [f"generate {PROMPT} {SHORT} --ranks 4 --attention usp"],
    "five ranks, ring": [f"generate {PROMPT} {SHORT} --ranks 5 --attention ring"],
    "branches apart": [f"generate {PROMPT} {SHORT} --ranks 2 --cfg-degree 2"],
    "stages apart": [f"generate {MANY} --placement 'denoise=0-1 decode=2' --attention ulysses"],
    "co-processing": [f"generate {MANY} --placement 'denoise=0-1 decode=2' --coprocess --attention ulysses"],
    "replicas": [f"generate {MANY} --ranks 2 --replicas 2"],
    "tiles": [
        f"generate {PROMPT} {SHORT} --ranks 2 --placement 'decode=0-1' --decode-degree 2 --vae-tile 64"
    ],
    "long": [f"generate {PROMPT} {LONG}"],
    "long on three ranks, extended": [
        f"generate {PROMPT} {LONG} --ranks 3 --checkpoint-steps 2",
        "extend RUN --num-frames 32 --json",
    ],
    "windowed": [f"generate {PROMPT} {LONG} --method windowed --ranks 2"],
    "fifo": [f"generate {PROMPT} {LONG} --method fifo"],
    "killed and resumed": [f"KILL generate {PROMPT} {SHORT} --ranks 2 --checkpoint-steps 1", "resume --json"],
    "killed and resumed, long": [f"KILL generate {PROMPT} {LONG} --checkpoint-steps 1", "resume --json"],
    "dry runs": [
        f"generate {PROMPT} --dry-run --json --ranks 3",
        f"generate {PROMPT} --dry-run --duration 30s --ranks 2",
        f"generate {PROMPT} --dry-run --model Wan-AI/Wan2.2-T2V-A14B-Diffusers --ranks 8 --explain",
        "plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --gpus 8xL40 --json",
        "plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --gpus 4xH100 --duration 60s",
    ],
    "errors": [
        "generate",
        f"generate {PROMPT} --num-frames 18",
        f"generate {PROMPT} --ranks 0",
        f"generate {PROMPT} --ranks 3 --cfg-degree 2",
        f"generate {PROMPT} --attention usp --ranks 4 --ring-degree 3",
        f"generate {PROMPT} --attention ring --chunks 2 --ranks 2",
        f"generate {PROMPT} --method full --block-frames 3",
        f"generate {PROMPT} --method dualparal --attention ulysses --ranks 2 --num-frames 129",
        f"generate {PROMPT} --coprocess --ranks 2",
        f"generate {PROMPT} --placement 'denoise=0 decode=9' --ranks 2",
        f"generate {PROMPT} --kernel sage",
        f"generate {PROMPT} --model none/here",
        f"generate {PROMPT} -o v.avi",
        f"generate {PROMPT} --pipeline-degree 2 --ranks 2",
        f"generate {PROMPT} --decode-degree 4",
        "plan --model shapes --gpus 8xNothing",
        "resume",
        "extend nothing --duration 3s",
    ],
}
KILL_AFTER = 0.3
"""Fraction of the denoising steps after which a run is killed."""
LEFT_OUT = re.compile(r"second|memory|_bytes|rate|run_dir|model_folder|reason|path$|took")
"""Pattern of the JSON fields that depend on the clock, on memory or on the folder of a run."""
IN_TEXT = re.compile(r"\d+(\.\d+)?( ms| s\b| min\b|e-\d+)|paradit-runs/\S+|/tmp/\S+|\d{8}-\d{6}-\w+")
LIMIT = 600.0


@dataclass
class Seen:
    """Results of one version for a list of commands."""

    codes: list[int] = field(default_factory=list)
    lines: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    latents: dict[str, torch.Tensor] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--only", nargs="*", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    arguments = parser.parse_args()
    differ = 0
    with source(arguments.old) as old, source(arguments.new) as new:
        for name in arguments.only:
            found = differences(seen(old, COMMANDS[name]), seen(new, COMMANDS[name]))
            print(f"{name}: {'equal' if not found else ''}", *found, sep="\n  ", flush=True)
            differ += bool(found)
    print(f"{differ} of {len(arguments.only)} differ")
    return int(differ > 0)


@contextmanager
def source(version: str) -> Iterator[Path]:
    """Yield the `src` folder of a git revision, or of a folder."""
    if (Path(version) / "src").is_dir():
        yield (Path(version) / "src").resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", version, "src"], capture_output=True, check=True)
        subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder) / "src"


def seen(src: Path, commands: list[str]) -> Seen:
    """Run commands with one version, one after the other in one folder, and return their results."""
    result = Seen()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.txt").write_text("a red circle\na blue square moving up\na green ring\n")
        environment = {
            **os.environ,
            "PYTHONPATH": str(src),
            "OMP_NUM_THREADS": "1",
            # A cache of its own, so that neither version uses what the other has measured.
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
        }
        for command in commands:
            run(command, folder, environment, result)
        for path in sorted(folder.glob("l*.safetensors")):
            result.latents[path.name] = load_file(path)["latents"]
        for path in sorted(folder.glob("v*.mp4")):
            result.frames[path.name] = hashlib.sha256(read_video(path)[0].tobytes()).hexdigest()
    return result


def run(command: str, folder: Path, environment: dict[str, str], result: Seen) -> None:
    words = shlex.split(command)
    killed = words[0] == "KILL"
    runs = sorted((folder / "paradit-runs").glob("*"))
    words = [str(runs[0].relative_to(folder)) if word == "RUN" else word for word in words[killed:]]
    process = subprocess.Popen(
        [sys.executable, "-m", "paradit", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if killed:
        kill_in_the_middle(process)
        return
    out, errors = process.communicate(timeout=LIMIT)
    result.codes.append(process.returncode)
    for line in out.splitlines():
        result.lines[normalised(line)] += 1
    if "--json" not in words:
        result.said += [IN_TEXT.sub("~", line) for line in errors.splitlines()]


def kill_in_the_middle(process: subprocess.Popen[str]) -> None:
    """Kill a command's main process after a fraction of its steps, and wait for its ranks to end."""
    total = 0
    assert process.stdout
    for line in process.stdout:
        event = json.loads(line)
        if event.get("stage") == "denoise":
            total = event.get("total") or total
            if event["event"] == "step" and event["done"] >= max(1, KILL_AFTER * total):
                break
    process.kill()
    process.communicate()
    time.sleep(2.0)  # ranks notice by themselves, and end


def normalised(line: str) -> str:
    """Return a line of stdout without the parts that differ from run to run."""
    if not line.startswith("{"):
        return IN_TEXT.sub("~", line)
    event = json.loads(line)
    if event.get("event") in ("step", "block"):  # may be reported more or less often
        return str(event["event"])
    return json.dumps(without_chance(event), sort_keys=True)


def without_chance(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_chance(part) for key, part in value.items() if not LEFT_OUT.search(key)}
    if isinstance(value, list):
        return [without_chance(part) for part in value]
    return IN_TEXT.sub("~", value) if isinstance(value, str) else value


def differences(old: Seen, new: Seen) -> list[str]:
    found = []
    if old.codes != new.codes:
        found.append(f"exit codes {old.codes} and {new.codes}")
    found += [f"- {line[:300]}" for line in old.lines - new.lines if line not in ("step", "block")]
    found += [f"+ {line[:300]}" for line in new.lines - old.lines if line not in ("step", "block")]
    if old.said != new.said:
        found += [f"- {line}" for line in old.said if line not in new.said]
        found += [f"+ {line}" for line in new.said if line not in old.said]
    if old.latents.keys() != new.latents.keys() or old.frames != new.frames:
        found.append(f"videos {sorted(old.frames)} and {sorted(new.frames)}, or their frames")
    for name, latents in old.latents.items():
        if name in new.latents and not torch.equal(latents, new.latents[name]):
            found.append(f"{name} by {(latents - new.latents[name]).abs().max():.2e}")
    return found


if __name__ == "__main__":
    sys.exit(main())
