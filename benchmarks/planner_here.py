"""Compare the planner with times measured on this machine, calibrated on other shapes.

    python benchmarks/planner_here.py overlap --links loopback 400mbit 100mbit --repeats 3
    python benchmarks/planner_here.py stages --steps 4 --repeats 3
    python benchmarks/planner_here.py stages --steps 30 --repeats 1
    python benchmarks/planner_here.py long --repeats 2

overlap: denoising steps of `attention_overlap.py`'s two transformers on two ranks of one core each, with
several placements, over links of limited rate (needs root, `ip` and `tc`). stages: ten prompts of `stages.py`
on two ranks, with several placements. long: denoising of `long_video.py`'s video in blocks and at once, on
one rank and on two. Each part first calibrates the machine as `paradit calibrate` does, with the same kind of
processes on the same link, then simulates and measures; the figures are medians of turns. The results of all
parts are in one file.

Two placements are compared if they have the same model, link and steps and their measured times differ by
more than 5 %; the predicted winner is right if the simulated times differ in the same direction.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from attention_overlap import LATENT_SHAPES, TEXT_TOKENS, Step, modules
from links import Host, loopback, two_hosts
from long_video import HEIGHT_WIDTH, QUEUE, SIZES, taking_turns
from machine import RESULTS, command, write_results
from pairs import Pair, join, serve
from paradit.attention.registry import Choice
from paradit.config.methods.method import resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request
from paradit.distributed.world import World, current_world
from paradit.engine.fixed_list import make_videos
from paradit.engine.microbenchmarks import Calibration, measure
from paradit.models.folder import find_model
from paradit.models.hunyuan_video.spec import transformer_spec as hunyuan_video_spec
from paradit.models.published import published_spec
from paradit.models.spec import ModelSpec, read_spec
from paradit.models.wan.spec import transformer_spec as wan_spec
from paradit.planner.block_costs import long_video
from paradit.planner.calibration import fit_device, machine_file, median_error
from paradit.planner.hardware import Cluster, find_cluster
from paradit.planner.messages import crowded, fit_link
from paradit.planner.simulate import Candidate, Simulator
from paradit.progress import Progress
from paradit.scheduling.balance import simulate
from paradit.testing import run_world
from paradit.trace.merge import read_spans
from paradit.trace.spans import STAGE, Tracing, recording
from random_models import random_wan
from stages import WAYS as STAGE_WAYS
from stages import of_steps, take

WAYS = {
    "ulysses": Choice.of("ulysses"),
    "pipesp 2": Choice.of("pipesp", chunks=2),
    "pipesp 4": Choice.of("pipesp", chunks=4),
    "pipesp-paper": Choice.of("pipesp-paper"),
    "interleave": Choice.of("ulysses", interleave=True),
    "interleave, pipesp 2": Choice.of("pipesp", chunks=2, interleave=True),
    "ring": Choice.of("ring"),
}
MODELS = "wan", "hunyuan_video"
PORT = 29720
PROMPTS = 10
TIE = 0.2
"""Fraction of a stage: events that are closer together than this may come in either order."""
DIFFERENCE = 0.05
TRACED = ("together", "apart")
"""Placements whose schedule is fixed beforehand; with others, ranks take whatever request comes first."""


def placement_of(form: Choice) -> Placement:
    return Placement(ranks=2).chosen(form)


def candidates(model: str) -> dict[str, Choice]:
    return {name: form for name, form in WAYS.items() if model == "wan" or not form.interleave}


@torch.no_grad()
def worker(what: str, rank: int, address: str) -> None:
    join(rank, address)
    world = current_world(torch.device("cpu"))
    assert world is not None
    if what in MODELS:
        step = Step(what, {name: placement_of(form) for name, form in candidates(what).items()})
        for name in candidates(what):
            step.take(name)
        serve(None, step.take)
        return
    serve(calibrated(measure(world, Progress())), lambda _: None)


def calibrated(found: Calibration) -> str:
    """Return the text of the machine's calibration file."""
    device = fit_device(found.measured, found.copies, "benchmarks/planner_here.py")
    for kind in ("product", "attention", "block", "decode"):
        print(
            f"  {kind}: median residual {100 * median_error(found.measured, device, kind):.1f} %",
            file=sys.stderr,
        )
    assert found.messages is not None
    device = crowded(device, found.messages)
    return machine_file(device, fit_link(found.messages, found.copies, 2), 2, found.measured, [])


def cluster_of(text: str) -> Cluster:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine.toml"
        path.write_text(text)
        return find_cluster(str(path))


def hosts_of(link: str) -> AbstractContextManager[list[Host]]:
    return loopback() if link == "loopback" else two_hosts(link)


def overlap(links: list[str], repeats: int) -> dict[str, Any]:
    rows, files = [], {}
    for number, link in enumerate(links):
        with hosts_of(link) as hosts:
            for model in MODELS:
                # Calibrate before each case, because the speed of this machine's cores changes by the minute.
                port = PORT + 10 * number + 2 * MODELS.index(model)
                pair = Pair(__file__, ["machine"], hosts, port)
                (text, *_) = pair.ready
                pair.close()
                files[f"{model}, {link}"] = text
                simulator = Simulator(cluster_of(text), *small(model), "fp32")
                pair = Pair(__file__, [model], hosts, port + 1)
                taken: dict[str, list[float]] = {name: [] for name in candidates(model)}
                for turn in range(repeats):
                    # The order alternates, so that a drift of the machine's speed favours no variant.
                    for name in list(taken) if turn % 2 else reversed(taken):
                        taken[name].append(pair.take(name)["seconds"])
                pair.close()
                for name, form in candidates(model).items():
                    candidate = Candidate(placement=placement_of(form))
                    rows.append({
                        "case": f"{model}, {link}",
                        "way": name,
                        "simulated": simulator.simulate(candidate, 1, form).step,
                        "measured": median(taken[name]),
                    })  # fmt: skip
    return {"machine_files": files, "repeats": repeats, "rows": rows}


def small(model: str) -> tuple[ModelSpec, Request]:
    """Return a published spec with the benchmark's transformer, and a request with its latents' size."""
    module, *_ = modules(model)
    name, reader = {
        "wan": ("Wan2.1-T2V-1.3B-Diffusers", wan_spec),
        "hunyuan_video": ("HunyuanVideo", hunyuan_video_spec),
    }[model]
    spec = replace(published_spec(name), transformers=(reader(dict(module.config)),), text_length=TEXT_TOKENS)
    frames, height, width = LATENT_SHAPES[model]
    scale = spec.vae.spatial_compression
    sizes = {"height": scale * height, "width": scale * width, "num_frames": 4 * (frames - 1) + 1}
    return spec, resolve(Request(prompt="any", num_inference_steps=1, **sizes), spec)


def measured_here(world: World) -> str | None:
    found = measure(world, Progress())
    return None if world.rank else calibrated(found)


def stages(steps: int, repeats: int) -> dict[str, Any]:
    text, *_ = run_world(measured_here, 2, timeout=600)
    burst, rows = of_steps(PROMPTS, steps), []
    simulator = Simulator(cluster_of(text), burst.spec, burst.jobs("")[0].request, "fp32")
    taken: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in STAGE_WAYS}
    for _ in range(repeats):
        for name, placement in STAGE_WAYS.items():
            taken[name].append(take(placement, burst))
    for name, placement in STAGE_WAYS.items():
        candidate = Candidate(placement=placement, coprocess=placement.coprocess)
        simulated = simulator.simulate(candidate, PROMPTS, Choice.of("ulysses"))
        seconds = dict(simulated.stages)
        rows.append({
            "case": f"{steps} steps",
            "way": name,
            "simulated": simulated.seconds,
            "measured": median(took for took, _ in taken[name]),
            "stages_simulated": {part: PROMPTS * took for part, took in seconds.items()},
            "stages_measured": {
                part: median(stages[part] for _, stages in taken[name]) for part in ("denoise", "decode")
            },
            "same_order": same_order(placement, steps, seconds) if name in TRACED else None,
        })  # fmt: skip
    return {"machine_file": text, "prompts": PROMPTS, "repeats": repeats, "rows": rows}


def traced_rank(world: World, placement: Placement, steps: int, folder: str) -> None:
    burst = of_steps(PROMPTS, steps)
    with recording(Tracing(Path(folder)), world.rank):
        make_videos(burst.jobs(folder), burst.spec, placement, Progress(), overwrite=True, world=world)


def same_order(placement: Placement, steps: int, seconds: dict[str, float]) -> dict[str, Any]:
    """Trace a run and compare the order in which stages begin and end with the simulated order.

    Returns whether the orders are equal on each rank, and how many pairs of events, over all ranks, agree.
    """
    with tempfile.TemporaryDirectory() as folder:
        run_world(traced_rank, 2, placement, steps, folder, timeout=900)
        spans = {path.name[0]: read_spans(path) for path in Path(folder).glob("*.jsonl")}
    real = [
        (at, rank, moment, span.name, span.about["request"])
        for rank in ("0", "1")
        for span in spans[rank]
        if span.category == STAGE and "request" in span.about
        for moment, at in (("begin", span.begin), ("end", span.end))
    ]
    simulated = [
        (at, str(rank), moment, span.stage, span.request)
        for span in simulate(placement, PROMPTS, seconds)
        for rank in span.ranks
        for moment, at in (("begin", span.start), ("end", span.end))
    ]
    by_rank = [
        [
            [event[1:] for event in sorted(events, key=lambda e: e[0]) if event[1] == rank]
            for rank in ("0", "1")
        ]
        for events in (real, simulated)
    ]
    at_real = {event[1:]: event[0] for event in real}
    tie = TIE * min(seconds["denoise"], seconds["decode"])
    apart = [
        at_real[one[1:]] < at_real[other[1:]]
        for one, other in combinations(sorted(simulated, key=lambda e: e[0]), 2)
        # Events that are nearly simultaneous in the simulation may come in either order in reality.
        if other[0] - one[0] > tie
    ]
    return {"by_rank": by_rank[0] == by_rank[1], "events_apart": len(apart), "in_order": sum(apart)}


LONG_WAYS = {
    "one rank": Placement(),
    "stages": Placement.of(ranks=2, pipeline_degree=2),
    "tokens shared": Placement.of(ranks=2, pipeline_degree=1),
    "branches apart": Placement.of(ranks=2, cfg_degree=2, pipeline_degree=1),
    "full, one rank": Placement(),
    "full, tokens shared": Placement.of(ranks=2),
}
"""Placements of a long video, by the names that `long_video.taking_turns` uses."""


def long(repeats: int) -> dict[str, Any]:
    text, *_ = run_world(measured_here, 2, timeout=600)
    found, *_ = run_world(taking_turns, 2, repeats, timeout=590)
    module, _, _ = random_wan(SIZES, (1, 2, 2), 8)
    spec = read_spec(find_model("shapes"))
    spec = replace(spec, transformers=(wan_spec(dict(module.config)),), text_length=16)
    rows = []
    for name, placement in LONG_WAYS.items():
        method = "full" if name.startswith("full") else "dualparal"
        request = long_request(spec, method)
        simulator = Simulator(cluster_of(text), spec, request, "fp32", long=request)
        candidate = Candidate(placement=placement, method=method)
        if method == "full":
            simulated = QUEUE.num_steps * simulator.simulate(candidate, 1, Choice.of("ulysses")).step
        else:
            simulated = replace(long_video(simulator, candidate), decode=0.0).run().denoised
        measured = median(found["seconds"][name])
        rows.append({"case": "a long video", "way": name, "simulated": simulated, "measured": measured})
    return {"machine_file": text, "repeats": repeats, "rows": rows}


def long_request(spec: ModelSpec, method: str) -> Request:
    scale, (height, width) = spec.vae.spatial_compression, HEIGHT_WIDTH
    assert QUEUE.num_frames
    blocks = {"block_frames": QUEUE.block_frames, "context_frames": QUEUE.context_frames}
    asked = Request(
        prompt="any",
        method=method,
        height=scale * height,
        width=scale * width,
        num_frames=spec.vae.temporal_compression * (QUEUE.num_frames - 1) + 1,
        num_inference_steps=QUEUE.num_steps,
        guidance_scale=3.0,
        **(blocks if method == "dualparal" else {}),
    )
    return resolve(asked, spec)


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [row["simulated"] / row["measured"] - 1 for row in rows]
    right = [
        (one["simulated"] - other["simulated"]) * (one["measured"] - other["measured"]) > 0
        for one, other in combinations(rows, 2)
        if one["case"] == other["case"]
        and abs(one["measured"] - other["measured"]) > DIFFERENCE * max(one["measured"], other["measured"])
    ]
    return {
        "median_error": median(map(abs, errors)),
        "mean_error": mean(map(abs, errors)),
        "largest_error": max(map(abs, errors)),
        "pairs": len(right),
        "pairs_right": sum(right),
    }


def show(part: dict[str, Any]) -> None:
    for row in part["rows"]:
        print(
            f"  {row['case']:28} {row['way']:24} {row['simulated']:8.3f} {row['measured']:8.3f} s "
            f"{100 * (row['simulated'] / row['measured'] - 1):+6.1f} %"
        )
        if "stages_simulated" in row:
            print(f"      {row['stages_simulated']} {row['stages_measured']} {row['same_order']}")
    print(part["judged"], flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        what, rank, address = sys.argv[2:]
        worker(what, int(rank), address)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["overlap", "stages", "long"])
    parser.add_argument("--links", nargs="+", default=["loopback", "400mbit", "100mbit"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    if args.part == "overlap":
        name, part = "overlap", overlap(args.links, args.repeats)
    elif args.part == "long":
        name, part = "long", long(args.repeats)
    else:
        name, part = f"stages, {args.steps} steps", stages(args.steps, args.repeats)
    part = {"command": command(), "judged": judge(part["rows"]), **part}
    show(part)
    path = RESULTS / "planner_here.json"
    before = json.loads(path.read_text())["parts"] if path.exists() else {}
    write_results("planner_here", {"parts": {**before, name: part}})


if __name__ == "__main__":
    main()
