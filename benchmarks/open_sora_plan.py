"""PipeDiT's ablation (arXiv 2511.12056, Table 3) on a small random Open-Sora-Plan, on three ranks.

    python benchmarks/open_sora_plan.py --link 1gbit --repeats 3

A: Ulysses and all stages on three ranks. B: two ranks encode texts and denoise, one decodes (DeDiVAE). C: B
with PipeSP as in its paper. D: C, and the decoder computes a part of the attention while it is idle. The
paper's A offloads weights to the host in addition, which a CPU cannot.

First every row makes a few videos for real: the latents and files of all rows are compared, and bytes and
memory are counted. Then their times are measured, in turn, without computing: two cores cannot run three
ranks at once, so each of these sleeps for as long as its computation takes alone on one core (`emulated`).
Messages are real, and travel over a loopback that `tbf` limits. That needs root, `ip` and `tc`; `--link
loopback` does not limit it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from safetensors.torch import load_file
from torch import Tensor

from emulated import emulate
from links import limited_loopback
from machine import write_results
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.device_memory import peak_memory_bytes
from paradit.distributed.transport import Transfer, Transport
from paradit.distributed.world import World
from paradit.engine.events import Finished
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.models.spec import read_spec
from paradit.progress import Event
from paradit.testing import run_world
from random_models import save_open_sora_plan
from stages import Clock

APART: dict[str, Any] = {"ranks": 3, "denoise": (0, 1), "decode": (2,), "encode": (0,)}
ROWS = {
    "one process": Placement(),
    "A": Placement(ranks=3, attention="ulysses"),
    "B": Placement(**APART, attention="ulysses"),
    "C": Placement(**APART, attention="pipesp-paper"),
    "D": Placement(**APART, attention="pipesp-paper", coprocess=True),
}
TIMED = [name for name in ROWS if name != "one process"]
SIZES = {"heads": 6, "layers": 8, "vae_channels": 16, "text": 512}
VIDEO = {"width": 256, "height": 192, "num_frames": 17}
DURATIONS = "durations"
TINY_SIZES = {"heads": 2, "layers": 5, "vae_channels": 8, "text": 64}
TINY_VIDEO = {"width": 96, "height": 64, "num_frames": 9}


class Results(Clock):
    """Clock that also keeps the description of each video."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[dict[str, Any]] = []

    def hear(self, event: Event) -> None:
        super().hear(event)
        if isinstance(event, Finished):
            self.results.append(event.result)


def jobs(model: Path, folder: Path, number: int, asked: dict[str, int]) -> list[Job]:
    folder.mkdir(parents=True, exist_ok=True)
    spec = read_spec(model)
    return [
        Job(
            request=resolve(Request(prompt="a red circle", seed=seed, **asked), spec),
            output=str(folder / f"{seed}.mp4"),
            latents=folder / f"{seed}.safetensors",
            index=seed,
            count=number,
        )
        for seed in range(number)
    ]


def rank(
    world: World, model: Path, all_jobs: list[Job], where: Placement, durations: Path | None
) -> dict[str, Any]:
    """Make videos on this rank; return what it took.

    durations: folder with the durations to sleep for; None: everything is computed.
    """
    before, clock, sent = psutil.Process().memory_info().rss, Results(), 0
    start = Transport.start

    def counted(transport: Transport, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        nonlocal sent
        so_far = transport.bytes_sent
        transfer = start(transport, outgoing, sizes)
        sent += transport.bytes_sent - so_far
        return transfer

    Transport.start = counted  # type: ignore[method-assign]
    if durations:
        emulate(durations)
    make_videos(all_jobs, read_spec(model), where, clock, overwrite=True, metadata=False, world=world)
    return {
        "began": clock.began,
        "ended": clock.ended,
        "sent": sent,
        "memory": peak_memory_bytes(world.device) - before,
        "helped_steps": sum(result.get("coprocessed_steps", 0) for result in clock.results),
    }


@dataclass(frozen=True)
class Burst:
    """Requests that every row of the ablation makes, all at once."""

    model: Path
    folder: Path
    number: int
    asked: dict[str, int]

    def made(self, name: str, durations: Path | None = None) -> dict[str, Any]:
        """Make the videos in a row; return seconds, and bytes, memory and steps with help by rank."""
        where, all_jobs = ROWS[name], jobs(self.model, self.folder / name, self.number, self.asked)
        found = run_world(rank, where.ranks, self.model, all_jobs, where, durations, timeout=600)
        began = min(one["began"] for one in found if one["began"])
        return {
            "seconds": max(one["ended"] for one in found) - began,
            **{what: [one[what] for one in found] for what in ("sent", "memory", "helped_steps")},
        }


def results_of(folder: Path, number: int) -> list[tuple[Tensor, str]]:
    """Return the latents and the hash of the file of each video."""
    return [
        (
            load_file(folder / f"{seed}.safetensors")["latents"],
            sha256((folder / f"{seed}.mp4").read_bytes()).hexdigest(),
        )
        for seed in range(number)
    ]


def computed(burst: Burst) -> dict[str, dict[str, Any]]:
    """Make videos for real in every row, and compare them with those of one process."""
    folder, number = burst.folder, burst.number
    rows = {name: burst.made(name) for name in ROWS}
    expected = results_of(folder / "one process", number)
    for name, row in rows.items():
        pairs = list(zip(results_of(folder / name, number), expected, strict=True))
        row["difference"] = max(float((ours[0] - theirs[0]).abs().max()) for ours, theirs in pairs)
        row["files_equal"] = all(ours[1] == theirs[1] for ours, theirs in pairs)
        helped = sum(row["helped_steps"])
        print(f"{name:12} latents {row['difference']:.1g} from one process, files "
              f"{'equal' if row['files_equal'] else 'differ'}; MB sent {_each(row['sent'])}, "
              f"peak MB {_each(row['memory'])}" + (f"; helped in {helped} steps" if helped else ""),
              flush=True)  # fmt: skip
    return rows


def emulated(burst: Burst, repeats: int) -> dict[str, dict[str, Any]]:
    """Return the seconds of each row with computation slept, and in how many steps the decoder helped."""
    durations = burst.folder / DURATIONS
    durations.mkdir(parents=True)
    for name in TIMED:  # measures how long each computation takes
        replace(burst, number=1).made(name, durations)
    taken = [{name: burst.made(name, durations) for name in TIMED} for _ in range(repeats)]
    rows = {}
    for name in TIMED:
        each = [turn[name] for turn in taken]
        seconds = median(one["seconds"] for one in each)
        rows[name] = {"seconds": seconds, "helped_steps": [sum(one["helped_steps"]) for one in each]}
        print(f"{name:12} {seconds:6.1f} s, {rows['A']['seconds'] / seconds:.2f} times as fast as A; "
              f"steps with help: {rows[name]['helped_steps']}", flush=True)  # fmt: skip
    return rows


def _each(sizes: list[int]) -> str:
    return ", ".join(f"{size / 1e6:.0f}" for size in sizes)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    sizes, video = (TINY_SIZES, TINY_VIDEO) if args.tiny else (SIZES, VIDEO)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_open_sora_plan(model, **sizes)
        few, many = ({**video, "num_inference_steps": steps} for steps in (args.real_steps, args.steps))
        print("computed:")
        real = computed(Burst(model, Path(folder) / "computed", args.real_videos, few))
        print("emulated: ranks sleep for as long as their computation takes alone on one core")
        burst = Burst(model, Path(folder) / "emulated", args.videos, many)
        slept = emulated(burst, args.repeats)
        kept = {path.name: float(path.read_text()) for path in (burst.folder / DURATIONS).glob("* *")}
    found = {"model": sizes, "video": video, "computed": real, "emulated": slept, "durations": kept}
    return {**vars(args), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--link", default="1gbit", help="rate of the loopback for all ranks; or `loopback`")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--real-videos", type=int, default=2)
    parser.add_argument("--real-steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="so small that times say nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.link != "loopback" and not args.inside:
        with limited_loopback(args.link) as prefix:
            subprocess.run([*prefix, sys.executable, __file__, *sys.argv[1:], "--inside"], check=True)
        return
    write_results("open_sora_plan", measured(args))


if __name__ == "__main__":
    main()
