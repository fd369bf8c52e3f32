"""Output of `paradit plan`: text for people (table, reasons, what does not fit, commands), or JSON."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import Any

from paradit.cli.commands.plan_options import PlanOptions
from paradit.cli.text import amount, duration, pictures_text, steps_text
from paradit.config.methods.method import find_method
from paradit.config.methods.registry import METHODS
from paradit.config.options import declared, to_argv
from paradit.config.placement_text import write_groups
from paradit.config.request_inputs import FITS
from paradit.models.published import find_published
from paradit.models.spec import ModelSpec
from paradit.models.warnings import to_convert
from paradit.planner.explain import bound_of, misfits, otherwise, reasons, ruled_out
from paradit.planner.search import Plan, Plans
from paradit.planner.simulate import Simulated, Simulator, cost_model_of

SHOWN = 4
"""Number of plans, the best ones, that the table shows."""


def plan_text(plans: Plans, simulator: Simulator, options: PlanOptions) -> str:
    """Return all that `paradit plan` prints for people, as one text."""
    request, cluster = simulator.request, simulator.cluster
    prompts = "1 prompt" if options.num_prompts == 1 else f"{options.num_prompts} prompts"
    lines = [
        f"{simulator.spec.name}: {request.width}x{request.height}, {request.num_frames} frames, "
        f"{request.num_inference_steps} steps, {prompts}, {simulator.dtype}, on {cluster.name}",
        *([f"steps: {text}"] if (text := steps_text(request, simulator.spec)) else []),
        f"{plans.compared} plans simulated; the best of each kind for {options.goal}, then the usual ones:",
        "",
        *_table(plans, simulator),
        "",
    ]
    best = plans.best[:SHOWN]
    if best[0].fits:
        lines += [f"{number}. {command(one, simulator, options)}" for number, one in enumerate(best, 1)]
    for title, found in (
        ("why the first:", _reasons(plans, simulator, options)),
        ("", _misfits(plans, simulator)),
        ("", list(_cautions(plans, simulator))),
    ):
        lines += ["", *([title] if title else []), *found] if found else []
    return "\n".join(lines)


def _said(goal: str) -> Callable[[float], str]:
    return duration if goal != "memory" else lambda size: amount(size, "B")


def _reasons(plans: Plans, simulator: Simulator, options: PlanOptions) -> list[str]:
    said = _said(options.goal)
    other = otherwise(plans.best[0], simulator, options.num_prompts, options.goal, said)
    best = plans.best[0].simulated
    found = [*reasons(plans, options.goal, said), *ruled_out(best, simulator)]
    return [*found, *other, *_pictures(best, simulator)]


def _pictures(best: Simulated, simulator: Simulator) -> list[str]:
    if not simulator.request.has_pictures:
        return []
    candidate, seconds = best.candidate, best.stages["conditions"]
    return [pictures_text(candidate.placement, simulator.memory_parts(candidate), seconds)]


def _table(plans: Plans, simulator: Simulator) -> Iterator[str]:
    limit = simulator.cluster.device.memory
    rows = [("", "all", "one video", "first frames", f"memory of {amount(limit, 'B')}", "bottleneck")]
    rows += [(f"{number}. {one.name}", *_cells(one)) for number, one in enumerate(plans.best[:SHOWN], 1)]
    rows += [(one.name, *_cells(one)) for one in plans.usual]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


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


def _misfits(plans: Plans, simulator: Simulator) -> list[str]:
    """Return lines that say why some plans do not fit into memory.

    The lines are about the usual plans that do not fit. If no plan of a kind fits, there is also a line about
    the plan of that kind with the smallest peak memory.
    """
    fitting = {plan.simulated.candidate.kind for plan in plans.tried if plan.fits}
    lacking: dict[str, Plan] = {}
    for plan in sorted(plans.tried, key=lambda plan: max(plan.simulated.memory)):
        if plan.simulated.candidate.kind not in fitting:
            lacking.setdefault(plan.simulated.candidate.kind, plan)
    usual = [plan for plan in plans.usual if not plan.fits]
    found = misfits([*usual, *lacking.values()], simulator, lambda size: amount(size, "B"))
    if not fitting:
        found.append("nothing fits: use a smaller size, fewer frames, or GPUs with more memory")
    return found


def _cautions(plans: Plans, simulator: Simulator) -> Iterator[str]:
    """Yield warnings about the plans in the table: what is not exact, may look wrong, or cannot run yet."""
    shown = {plan.simulated.candidate.method for plan in (*plans.best[:SHOWN], *plans.usual)}
    for name in reversed(METHODS.names()):
        if name in shown:
            yield from cost_model_of(name).cautions(simulator)
    yield from to_convert(simulator.spec)


def command(one: Plan, simulator: Simulator, options: PlanOptions) -> str:
    """Return the command line that runs a plan."""
    spec, candidate, placement = simulator.spec, one.simulated.candidate, one.placement
    request = simulator.request_of(candidate)
    words = ["PROMPT"] if options.num_prompts == 1 else ["--prompts-file", "prompts.txt"]
    method, sharing = find_method(candidate.method), placement.branch_ranks > 1
    has_groups = (placement.encode, placement.denoise, placement.decode) != (None, None, None)
    said: dict[str, object] = {
        "model": spec.name if find_published(options.model) else options.model,
        "lora": options.lora,
        **_inputs(spec, options),
        "size": f"{request.width}x{request.height}",
        "duration": options.duration,
        "num_frames": request.num_frames if options.duration is None else None,
        "method": candidate.method if simulator.long is not None else None,
        **{name: value for name, value in options.others.items() if name in declared(method.options)},
        **{name: getattr(request, name) for name in method.by_ranks},  # the plan was made with these
        "num_inference_steps": None if request.timesteps else request.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "guidance_scale_2": options.guidance_scale_2,
        "preset": options.preset,
        "scheduler": options.scheduler,
        "shift": options.shift,
        "timesteps": options.timesteps,
        "expert_step": options.expert_step,
        "dtype": simulator.dtype if simulator.dtype != simulator.cluster.device.usual_dtype else None,
        "ranks": placement.ranks,
        "placement": write_groups(placement) if has_groups else None,
        "replicas": _above_one(placement.replicas),
        "decode_degree": _above_one(placement.decode_degree),
        "vae_tile": candidate.tile,
        "cfg_degree": _above_one(placement.cfg_degree),
        **(placement.method_options if sharing else {}),
    }
    if sharing and not method.divides_layers:
        interleave = placement.interleave or None
        said |= {"attention": placement.attention, **placement.options, "interleave": interleave}
    said["coprocess"] = candidate.coprocess or None
    return shlex.join(["paradit", "generate", *words, *to_argv(said)])


def _inputs(spec: ModelSpec, options: PlanOptions) -> dict[str, object]:
    """Return the options for pictures and a video; IMAGE stands for a picture that the model needs."""
    needed = {"image": spec.needs_image, "last_image": spec.needs_last_image}
    pictures = {name: getattr(options, name) or ("IMAGE" if needed[name] else None) for name in needed}
    fit = options.fit if options.fit != FITS[0] else None
    return {**pictures, "video": options.video, "strength": options.strength, "fit": fit}


def _above_one(number: int) -> int | None:
    return number if number > 1 else None


def plan_json(plans: Plans, simulator: Simulator, options: PlanOptions) -> dict[str, Any]:
    """Return the plans as plain values, for `--json`."""

    def one(plan: Plan) -> dict[str, Any]:
        simulated = plan.simulated
        return {
            "name": plan.name,
            "fits": plan.fits,
            "method": simulated.candidate.method,
            "seconds": simulated.seconds,
            "latency": simulated.latency,
            "first_frame": simulated.first_frame,
            "step": simulated.step,
            "stages": dict(simulated.stages),
            "exposed": simulated.exposed,
            "idle_by_rank": simulated.idle,
            "memory_bytes_by_rank": simulated.memory,
            "bound": bound_of(simulated),
            "coprocess": simulated.candidate.coprocess,
            "offload": simulated.candidate.offload,
            "vae_tile": simulator.request_of(simulated.candidate).vae_tile,
            "placement": plan.placement.flat(),
            "command": None if simulated.candidate.offload else command(plan, simulator, options),
        }

    request = simulator.request
    return {
        "event": "plan",
        "model": simulator.spec.name,
        "gpus": simulator.cluster.name,
        "width": request.width,
        "height": request.height,
        "num_frames": request.num_frames,
        **{
            name: getattr(simulator.long, name, None)
            for name in (
                *("block_frames", "context_frames", "lag"),
                *("left_level", "left_context", "context_timesteps"),
            )
        },
        "num_inference_steps": request.num_inference_steps,
        **request.changed_steps,
        "evaluations_by_expert": request.evaluations(simulator.spec),
        "num_prompts": options.num_prompts,
        "dtype": simulator.dtype,
        "goal": options.goal,
        "memory_limit_bytes": simulator.cluster.device.memory,
        "compared": plans.compared,
        "best": [one(plan) for plan in plans.best],
        "usual": [one(plan) for plan in plans.usual],
        "reasons": _reasons(plans, simulator, options),
        "misfits": _misfits(plans, simulator),
    }
