"""Time ten prompts on two ranks: stages together, on separate ranks, or a whole model on each rank.

    python benchmarks/stages.py --repeats 3

The bundled model makes 33 frames with one thread per rank; with few steps (the decode dominates) and many
(the denoising does). All placements take turns within one run. Figures are medians of the seconds from the
first prompt to the last video, with the models loaded. The bound for separate stages is the slower stage's
own time, once both are under way. `auto` is what `--placement auto` chooses after a warm-up in a world of its
own, repeated for each number of steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from machine import write_results
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.world import World
from paradit.engine.auto import choose_placement
from paradit.engine.events import Began, Finished
from paradit.engine.fixed_list import make_videos
from paradit.engine.job import Job
from paradit.engine.warmup import measure
from paradit.models.find_lora import with_loras
from paradit.models.folder import find_model
from paradit.models.spec import ModelSpec, read_spec
from paradit.progress import Event, Progress
from paradit.scheduling.balance import Choice, StageSeconds
from paradit.scheduling.stages import STAGES
from paradit.shapes.scenes import Scene, all_scenes, draw
from paradit.testing import run_world

WAYS = {
    "together": Placement(ranks=2, attention="ulysses"),
    "together, each decodes": Placement(ranks=2, decode=(0, 1), encode=(0,), attention="ulysses"),
    "apart": Placement(ranks=2, denoise=(0,), decode=(1,)),
    "apart, co-processing": Placement(ranks=2, denoise=(0,), decode=(1,), coprocess=True),
    "replicas": Placement(ranks=2, replicas=2),
}
AUTO = Placement(ranks=2, attention="ulysses")
STEPS = (4, 30)


class Clock(Progress):
    """Progress that records when the first request began, when the last video ended, and stage times."""

    def __init__(self) -> None:
        super().__init__(self.hear)
        self.began = self.ended = 0.0
        self.stages: list[dict[str, float]] = []

    def hear(self, event: Event) -> None:
        match event:
            case Began():
                self.began = self.began or time.time()
            case Finished():
                self.ended = time.time()
                self.stages.append(event.result["seconds"])


@dataclass(frozen=True, kw_only=True)
class Burst:
    """Requests to the bundled model that all come at once, each for another scene."""

    number: int
    asked: tuple[tuple[str, Any], ...]
    """Fields of every request, as (name, value) pairs."""
    loras: tuple[str, ...] = ()
    from_image: bool = False
    """Whether each request gives the first frame of its scene."""

    @property
    def spec(self) -> ModelSpec:
        return with_loras(read_spec(find_model("shapes")), self.loras)

    @property
    def scenes(self) -> list[Scene]:
        return all_scenes()[:: 1440 // self.number][: self.number]

    @contextmanager
    def folder(self) -> Iterator[str]:
        """Enter a new folder with the pictures that the requests give."""
        with tempfile.TemporaryDirectory() as folder:
            for seed, scene in enumerate(self.scenes if self.from_image else ()):
                first, *_ = draw(scene, 1, np.random.default_rng(seed), self.spec.defaults.width)
                Image.fromarray(first).save(_picture(folder, seed))
            yield folder

    def jobs(self, folder: str) -> list[Job]:
        """Return the jobs, whose pictures and videos are in a folder."""
        spec = self.spec
        return [
            Job(
                request=resolve(
                    Request(
                        prompt=scene.prompt,
                        seed=seed,
                        image=_picture(folder, seed) if self.from_image else None,
                        **dict(self.asked),
                    ),
                    spec,
                ),
                output=f"{folder}/{seed}.mp4",
                latents=None,
                index=seed,
                count=self.number,
            )
            for seed, scene in enumerate(self.scenes)
        ]


def _picture(folder: str, seed: int) -> str:
    return str(Path(folder) / f"{seed}.png")


def of_steps(num_prompts: int, steps: int) -> Burst:
    return Burst(number=num_prompts, asked=(("num_inference_steps", steps),))


def rank(world: World, placement: Placement, burst: Burst, folder: str) -> Clock:
    clock = Clock()
    make_videos(burst.jobs(folder), burst.spec, placement, clock, overwrite=True, world=world)
    return clock


def measured(world: World, burst: Burst) -> StageSeconds:
    return measure(world, burst.spec, burst.jobs("")[0].request, AUTO)


def automatic(burst: Burst) -> Choice:
    """Return the choice of `--placement auto`."""
    costs, *_ = run_world(measured, 2, burst, timeout=900)
    return choose_placement(burst.jobs(""), burst.spec, AUTO, costs)


def take(placement: Placement, burst: Burst) -> tuple[float, dict[str, float]]:
    """Return the seconds of a whole run, and the sums of its requests' seconds in each stage."""
    with burst.folder() as folder:
        clocks = run_world(rank, placement.ranks, placement, burst, folder, timeout=900)
    began = min(clock.began for clock in clocks if clock.began)
    stages = [each for clock in clocks for each in clock.stages]
    totals = {name: sum(each.get(name, 0.0) for each in stages) for name in STAGES}
    return max(clock.ended for clock in clocks) - began, totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for steps in STEPS:
        burst = of_steps(args.prompts, steps)
        choice = automatic(burst)
        candidates = {**WAYS, "auto": choice.placement}
        taken: dict[str, list[tuple[float, dict[str, float]]]] = {candidate: [] for candidate in candidates}
        for _ in range(args.repeats):
            for candidate, placement in candidates.items():
                taken[candidate].append(take(placement, burst))
        seconds = {candidate: median(took for took, _ in each) for candidate, each in taken.items()}
        both = [(stages["denoise"], stages["decode"]) for _, stages in taken["apart"]]
        bound = median(map(max, both))
        # The slower stage's time, plus one video in the other stage before it begins or after it ends.
        filled = median(max(a + b / args.prompts, b + a / args.prompts) for a, b in both)
        rows.append({
            "steps": steps,
            "seconds": seconds,
            "bound_apart": bound,
            "bound_apart_with_first_and_last": filled,
            "stages": {candidate: each[-1][1] for candidate, each in taken.items()},
            "auto": {"reason": choice.reason, "expected_seconds": choice.seconds},
        })  # fmt: skip
        print(f"\n{steps} steps, {args.prompts} prompts")
        for candidate, took in sorted(seconds.items(), key=lambda item: item[1]):
            print(
                f"  {candidate:24} {took:7.1f} s  {took / seconds['together']:5.2f} of together", flush=True
            )
        print(f"  bound of apart {bound:.1f} s: it takes {seconds['apart'] / bound:.2f} of that")
        ratio = seconds["apart"] / filled
        print(f"  with the first video's or the last one's other stage {filled:.1f} s: {ratio:.2f}")
        best = min(took for candidate, took in seconds.items() if candidate != "auto")
        print(f"  auto takes {seconds['auto'] / best:.2f} of the best other: {choice.reason}", flush=True)
    write_results("stages", {"prompts": args.prompts, "repeats": args.repeats, "rows": rows})


if __name__ == "__main__":
    main()
