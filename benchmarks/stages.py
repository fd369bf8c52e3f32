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
from statistics import median

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
from paradit.models.folder import find_model
from paradit.models.spec import ModelSpec, read_spec
from paradit.progress import Event, Progress
from paradit.scheduling.balance import Choice, StageSeconds
from paradit.shapes.scenes import all_scenes
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


def jobs_of(spec: ModelSpec, num_prompts: int, steps: int, folder: str) -> list[Job]:
    return [
        Job(
            request=resolve(Request(prompt=scene.prompt, seed=seed, num_inference_steps=steps), spec),
            output=f"{folder}/{seed}.mp4",
            latents=None,
            index=seed,
            count=num_prompts,
        )
        for seed, scene in enumerate(all_scenes()[:: 1440 // num_prompts][:num_prompts])
    ]


def rank(world: World, placement: Placement, num_prompts: int, steps: int, folder: str) -> Clock:
    spec, clock = read_spec(find_model("shapes")), Clock()
    jobs = jobs_of(spec, num_prompts, steps, folder)
    make_videos(jobs, spec, placement, clock, overwrite=True, world=world)
    return clock


def measured(world: World, num_prompts: int, steps: int) -> StageSeconds:
    spec = read_spec(find_model("shapes"))
    return measure(world, spec, jobs_of(spec, num_prompts, steps, "")[0].request, AUTO)


def automatic(num_prompts: int, steps: int) -> Choice:
    """Return the choice of `--placement auto`."""
    spec = read_spec(find_model("shapes"))
    costs, *_ = run_world(measured, 2, num_prompts, steps, timeout=900)
    return choose_placement(jobs_of(spec, num_prompts, steps, ""), spec, AUTO, costs)


def take(placement: Placement, num_prompts: int, steps: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of a whole run, and the sums of its requests' denoise and decode seconds."""
    with tempfile.TemporaryDirectory() as folder:
        clocks = run_world(rank, 2, placement, num_prompts, steps, folder, timeout=900)
    began = min(clock.began for clock in clocks if clock.began)
    stages = [each for clock in clocks for each in clock.stages]
    totals = {name: sum(each.get(name, 0.0) for each in stages) for name in ("denoise", "decode")}
    return max(clock.ended for clock in clocks) - began, totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rows = []
    for steps in STEPS:
        choice = automatic(args.prompts, steps)
        candidates = {**WAYS, "auto": choice.placement}
        taken: dict[str, list[tuple[float, dict[str, float]]]] = {candidate: [] for candidate in candidates}
        for _ in range(args.repeats):
            for candidate, placement in candidates.items():
                taken[candidate].append(take(placement, args.prompts, steps))
        seconds = {candidate: median(took for took, _ in each) for candidate, each in taken.items()}
        bound = median(max(stages.values()) for _, stages in taken["apart"])
        # The slower stage's time, plus one video in the other stage before it begins or after it ends.
        filled = median(
            max(a + b / args.prompts for a, b in (stages.values(), reversed(list(stages.values()))))
            for _, stages in taken["apart"]
        )
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
