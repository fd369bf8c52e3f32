"""`paradit plan`: what a run would take on some GPUs, and how best to use them. Imports no torch."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from paradit.cli.text import amount, duration
from paradit.errors import InputError
from paradit.models.folder import find_model
from paradit.models.published import find_published, published_spec
from paradit.models.registry import SUPPORTED_PIPELINES
from paradit.models.spec import read_spec
from paradit.planner.costs import ITEMSIZE
from paradit.planner.hardware import find_cluster
from paradit.planner.search import GOALS, Plan, Plans, bound_of, find_plans
from paradit.planner.simulate import Simulator
from paradit.requests import Request, parse_size, resolve
from paradit.scheduling.memory import memory_by_rank

if TYPE_CHECKING:
    from paradit.models.spec import ModelSpec

SHOWN = 4
"""Best plans in the table."""
MAX_PROMPTS = 1000


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options of `paradit plan`, under their own names."""

    model: str
    gpus: str
    size: str | None
    num_frames: int | None
    duration: str | None
    num_inference_steps: int | None
    guidance_scale: float | None
    num_prompts: int
    dtype: str
    goal: str
    json: bool


def plan(options: PlanOptions) -> None:
    """Print the best plans and the usual ones. Raises InputError."""
    if options.goal not in GOALS:
        raise InputError(f"goal must be one of {', '.join(GOALS)}, got {options.goal!r}")
    if not 1 <= options.num_prompts <= MAX_PROMPTS:
        raise InputError(f"num_prompts must be 1 to {MAX_PROMPTS}, got {options.num_prompts}")
    cluster = find_cluster(options.gpus)
    spec = _spec(options.model)
    request = _request(options, spec)
    simulator = Simulator(cluster, spec, request, options.dtype)
    plans = find_plans(simulator, options.num_prompts, options.goal)
    if options.json:
        print(json.dumps(_as_json(plans, simulator, options)))
    else:
        print(_text(plans, simulator, options))


def _spec(model: str) -> ModelSpec:
    if find_published(model):
        return published_spec(model)
    return read_spec(find_model(model))


def _request(options: PlanOptions, spec: ModelSpec) -> Request:
    width, height = parse_size(options.size) if options.size is not None else (None, None)
    request = Request(
        prompt="any",
        width=width,
        height=height,
        num_frames=options.num_frames,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        dtype=options.dtype,
    )
    if options.duration is not None:
        if options.num_frames is not None:
            raise InputError("give num_frames or a duration, not both")
        request = replace(request, num_frames=_frames(options.duration, spec))
    return resolve(request, spec)


def _frames(text: str, spec: ModelSpec) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min)?", text.strip())
    if match is None:
        raise InputError(f"duration is written like 5s or 1min, got {text!r}")
    seconds = float(match[1]) * (60 if match[2] == "min" else 1)
    compression = spec.vae.temporal_compression
    return round(seconds * spec.defaults.fps / compression) * compression + 1


def _text(plans: Plans, simulator: Simulator, options: PlanOptions) -> str:
    request, cluster, limit = simulator.request, simulator.cluster, simulator.cluster.device.memory
    lines = [
        f"{simulator.spec.name}: {request.width}x{request.height}, {request.num_frames} frames, "
        f"{request.num_inference_steps} steps, {options.num_prompts} "
        f"{'prompt' if options.num_prompts == 1 else 'prompts'}, {options.dtype}, on {cluster.name}",
        f"{plans.compared} ways simulated; the best for {options.goal} of each kind, then the usual ones:",
        "",
    ]
    rows = [("", "all", "one video", "first frames", f"memory of {amount(limit, 'B')}", "what bounds it")]
    best = plans.best[:SHOWN]
    rows += [(f"{number}. {one.name}", *_cells(one)) for number, one in enumerate(best, 1)]
    rows += [(one.name, *_cells(one)) for one in plans.usual]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    lines.append("")
    first = best[0]
    if first.fits:
        lines += [f"{number}. {_command(one, simulator, options)}" for number, one in enumerate(best, 1)]
    else:
        lines.append(_misfit(first, simulator))
    return "\n".join(lines)


def _cells(one: Plan) -> tuple[str, str, str, str, str]:
    simulated = one.simulated
    most = max(simulated.memory)
    memory = f"{amount(most, 'B')} on rank {simulated.memory.index(most)}"
    return (
        duration(simulated.seconds),
        duration(simulated.latency),
        duration(simulated.first_frame),
        memory if one.fits else f"{memory}: too much",
        bound_of(simulated),
    )


def _misfit(one: Plan, simulator: Simulator) -> str:
    """Which part of which rank is too much."""
    size = ITEMSIZE[simulator.dtype]
    by_rank = memory_by_rank(one.placement, simulator.request, simulator.spec, size)
    rank = max(range(len(by_rank)), key=lambda number: by_rank[number]["peak"])
    parts = {name: size for name, size in by_rank[rank].items() if name != "peak"}
    largest = max(parts, key=parts.__getitem__)
    limit = simulator.cluster.device.memory
    return (
        f"does not fit: {one.name} needs {amount(by_rank[rank]['peak'], 'B')} on rank {rank}, limit "
        f"{amount(limit, 'B')}; most of it {largest} ({amount(parts[largest], 'B')}). "
        "Use a smaller size, fewer frames, or GPUs with more memory"
    )


def _command(one: Plan, simulator: Simulator, options: PlanOptions) -> str:
    """The command line that runs a plan."""
    spec, request, placement = simulator.spec, simulator.request, one.placement
    if spec.pipeline_class not in SUPPORTED_PIPELINES:
        return f"(ParaDiT does not run {spec.name})"
    words = ["paradit", "generate"]
    words += ["PROMPT"] if options.num_prompts == 1 else ["--prompts-file", "prompts.txt"]
    words += ["--model", spec.name if find_published(options.model) else options.model]
    words += ["--size", f"{request.width}x{request.height}", "--num-frames", str(request.num_frames)]
    words += ["--num-inference-steps", str(request.num_inference_steps)]
    if options.guidance_scale is not None:
        words += ["--guidance-scale", f"{options.guidance_scale:g}"]
    words += ["--ranks", str(placement.ranks)]
    groups = [
        f"{stage}={_ranges(ranks)}"
        for stage in ("denoise", "decode", "encode")
        if (ranks := getattr(placement, stage)) is not None
    ]
    if groups:
        words += ["--placement", " ".join(groups)]
    if placement.replicas > 1:
        words += ["--replicas", str(placement.replicas)]
    if placement.cfg_degree > 1:
        words += ["--cfg-degree", str(placement.cfg_degree)]
    if placement.branch_ranks > 1:
        words += ["--attention", placement.attention]
        words += ["--chunks", str(placement.chunks)] if placement.chunks else []
        words += ["--interleave"] if placement.interleave else []
    if one.simulated.way.coprocess:
        words += ["--coprocess"]
    return shlex.join(words)


def _ranges(ranks: Sequence[int]) -> str:
    """Neighbours as `0-6`, as `--placement` reads them."""
    if len(ranks) > 1 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(map(str, ranks))


def _as_json(plans: Plans, simulator: Simulator, options: PlanOptions) -> dict[str, Any]:
    def one(plan: Plan) -> dict[str, Any]:
        simulated = plan.simulated
        return {
            "name": plan.name,
            "fits": plan.fits,
            "seconds": simulated.seconds,
            "latency": simulated.latency,
            "first_frame": simulated.first_frame,
            "step": simulated.step,
            "stages": dict(simulated.stages),
            "exposed": simulated.exposed,
            "idle_by_rank": simulated.idle,
            "memory_bytes_by_rank": simulated.memory,
            "bound": bound_of(simulated),
            "coprocess": simulated.way.coprocess,
            "offload": simulated.way.offload,
            "placement": asdict(plan.placement),
            "command": None if simulated.way.offload else _command(plan, simulator, options),
        }

    request = simulator.request
    return {
        "event": "plan",
        "model": simulator.spec.name,
        "gpus": simulator.cluster.name,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        "num_inference_steps": request.num_inference_steps,
        "num_prompts": options.num_prompts,
        "dtype": options.dtype,
        "goal": options.goal,
        "memory_limit_bytes": simulator.cluster.device.memory,
        "compared": plans.compared,
        "best": [one(plan) for plan in plans.best],
        "usual": [one(plan) for plan in plans.usual],
    }
