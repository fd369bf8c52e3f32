"""Command `paradit plan`: what a run would take on given GPUs, and how best to use them. Imports no torch."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from paradit.cli.commands.plan_options import PlanOptions
from paradit.cli.plan_text import plan_json, plan_text
from paradit.cli.text import duration
from paradit.config.errors import InputError
from paradit.config.given_values import as_files
from paradit.config.limits import whole
from paradit.config.methods.method import planned_methods, resolve
from paradit.config.placement import Placement
from paradit.config.requests import Request, ResolvedRequest, asked_size, frames_for, latent_shape
from paradit.config.steps import parse_timesteps
from paradit.files import write_whole
from paradit.models.find_lora import with_loras
from paradit.models.folder import find_model
from paradit.models.published import find_published, published_spec
from paradit.models.spec import ModelSpec, read_spec
from paradit.planner.hardware import find_cluster
from paradit.planner.search import GOALS, Plan, find_plans
from paradit.planner.simulate import Simulator
from paradit.planner.timeline import timeline
from paradit.streams import code_of_output
from paradit.trace.merge import chrome_trace
from paradit.video.writer import check_file

MAX_PROMPTS, MAX_PLANNED = 1000, 100_000
"""Largest number of prompts, and largest number of frames in a video, that `paradit plan` simulates."""


def plan(options: PlanOptions) -> int:
    """Print the best plans, and usual ones to compare with, and return the exit code. Raises InputError.

    The best plan's trace and picture are written if they are asked for.
    """
    if options.goal not in GOALS:
        raise InputError(f"goal must be one of {', '.join(GOALS)}, got {options.goal!r}")
    whole("num_prompts", options.num_prompts, most=MAX_PROMPTS)
    for name, path, suffix in (("trace", options.trace, ".json"), ("plot", options.plot, ".png")):
        _check_target(name, path, suffix, overwrite=options.overwrite)
    cluster = find_cluster(options.gpus)
    spec = with_loras(_spec(options.model), options.lora or ())
    dtype = options.dtype or cluster.device.usual_dtype
    with as_files(replace(_asked(options, spec), dtype=dtype)) as asked:
        request, long = _requests(asked, options, spec, Placement(ranks=cluster.ranks))
        simulator = Simulator(cluster, spec, request, dtype, long)
        plans = find_plans(simulator, options.num_prompts, options.goal)
    if options.json:
        print(json.dumps(plan_json(plans, simulator, options)))
    else:
        print(plan_text(plans, simulator, options))
    _draw(plans.best[0], simulator, options)
    return code_of_output()


def _check_target(name: str, path: Path | None, suffix: str, *, overwrite: bool) -> None:
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise InputError(f"{name} {str(path)!r} must end in {suffix}: use {str(path) + suffix!r}")
    check_file(name, path, overwrite=overwrite)


def _spec(model: str) -> ModelSpec:
    if find_published(model):
        return published_spec(model)
    return read_spec(find_model(model, weights=False))


def _asked(options: PlanOptions, spec: ModelSpec) -> Request:
    """Return the request of the options, with any picture if the model needs one. Raises InputError."""
    width, height = asked_size(options.size, options.width, options.height)
    asked = Request(
        prompt="any",
        width=width,
        height=height,
        num_frames=frames_for(options.duration, options.num_frames, None, spec),
        trim=options.duration is not None,
        num_inference_steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        guidance_scale_2=options.guidance_scale_2,
        preset=options.preset,
        scheduler=options.scheduler,
        shift=options.shift,
        timesteps=parse_timesteps(options.timesteps),
        expert_step=options.expert_step,
        image=_any_picture(spec) if spec.needs_image and options.image is None else options.image,
        last_image=(
            _any_picture(spec) if spec.needs_last_image and options.last_image is None else options.last_image
        ),
        video=options.video,
        strength=options.strength,
        fit=options.fit,
    )
    if asked.endless:
        raise InputError("duration must be finite for a plan, got inf: use one such as 60s")
    if asked.num_frames is not None:
        whole("num_frames", asked.num_frames, most=MAX_PLANNED, hint="a plan simulates every block")
    return asked


def _any_picture(spec: ModelSpec) -> object:
    from PIL import Image

    return Image.new("RGB", (spec.defaults.width, spec.defaults.height))


def _requests(
    asked: Request, options: PlanOptions, spec: ModelSpec, every_rank: Placement
) -> tuple[ResolvedRequest, ResolvedRequest | None]:
    """Return two requests for the same video: one denoised as a whole, one in frame blocks.

    The second is None if the video is no longer than the model was trained on. If the video cannot be
    denoised as a whole, both are in frame blocks. Raises InputError.
    """
    long = _in_blocks(asked, options, spec, every_rank)
    # If the video is too long for one piece, the error about that is reported unless blocks can make it.
    at_once = next(method.name for method in planned_methods() if not method.streams)
    try:
        return resolve(replace(asked, method=at_once), spec), long
    except InputError:
        most = spec.transformers[0].max_positions
        if long is None or latent_shape(long, spec)[1] <= most:
            raise
        return long, long


def _in_blocks(
    asked: Request, options: PlanOptions, spec: ModelSpec, every_rank: Placement
) -> ResolvedRequest | None:
    """Return the request in frame blocks; None if the video is no longer than the model was trained on.

    Raises InputError if options for frame blocks are given and cannot be used.
    """
    blocks, long = options.others, None
    method = next((method.name for method in planned_methods() if method.streams), None)
    with nullcontext() if blocks else suppress(InputError):  # other mistakes are reported for the whole video
        in_blocks = replace(asked, method=method, options=blocks)
        long = resolve(in_blocks, spec, every_rank) if method else None
    if long is None or latent_shape(long, spec)[1] > spec.trained_latent_frames:
        return long
    if blocks:
        most = (spec.trained_latent_frames - 1) * spec.vae.temporal_compression + 1
        raise InputError(
            f"{' and '.join(blocks)} must be left out: frame blocks are planned only for videos longer than "
            f"the {most} frames that the model was trained on, got {long.num_frames}"
        )
    return None


def _draw(best: Plan, simulator: Simulator, options: PlanOptions) -> None:
    """Write the best plan's simulated run to a trace and a picture, if these are asked for."""
    if options.trace is None and options.plot is None:
        return
    by_rank = timeline(simulator, best.simulated, options.num_prompts)
    if options.trace is not None:
        write_whole(options.trace, json.dumps(chrome_trace(by_rank)).encode())
    if options.plot is not None:
        from paradit.planner.picture import draw_timeline

        request = simulator.request
        subtitle = (
            f"{simulator.spec.name}, {request.width}x{request.height}, {request.num_frames} frames, "
            f"{request.num_inference_steps} steps, on {simulator.cluster.name}: "
            f"{duration(best.simulated.seconds)}, simulated"
        )
        picture = io.BytesIO()
        draw_timeline(by_rank, best.name, subtitle).save(picture, "PNG")
        write_whole(options.plot, picture.getvalue())
