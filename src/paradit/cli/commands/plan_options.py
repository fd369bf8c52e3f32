"""Options of the command `paradit plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import Entry, Options
from paradit.cli.commands.shared import (
    ExpertStep,
    Fit,
    GuidanceScale,
    GuidanceScale2,
    Height,
    Image,
    JsonObject,
    LastImage,
    Lora,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    Preset,
    Scheduler,
    Shift,
    Size,
    Strength,
    Timesteps,
    Verbose,
    Video,
    Width,
)
from paradit.config.options import Declared, Option


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """Simulate what a run would take on some GPUs, and how best to use them; loads nothing."""

    model: Annotated[
        str,
        Option(
            help="Hub id of a published model (no network needed), a folder, or another hub id.",
            metavar="ID_OR_FOLDER",
        ),
    ]
    gpus: Annotated[
        str,
        Option(
            help="GPUs, such as 8xL40, 2x8xH100 (two machines) or 'RTX 4090', or a file that `paradit "
            "calibrate` wrote.",
            metavar="NxGPU|FILE.toml",
        ),
    ]
    lora: Lora = None
    image: Image = None
    last_image: LastImage = None
    video: Video = None
    strength: Strength = None
    fit: Fit = "cover"
    size: Size = None
    width: Width = None
    height: Height = None
    num_frames: NumFrames = None
    duration: Annotated[
        str | None,
        Option(
            also=("seconds", "length"),
            help="Length, instead of --num-frames, such as 5s; long videos are also planned in frame blocks "
            "(dualparal, approximate).",
            metavar="TIME",
        ),
    ] = None
    num_inference_steps: NumInferenceSteps = None
    guidance_scale: GuidanceScale = None
    guidance_scale_2: GuidanceScale2 = None
    preset: Preset = None
    scheduler: Scheduler = None
    shift: Shift = None
    timesteps: Timesteps = None
    expert_step: ExpertStep = None
    num_prompts: Annotated[int, Option(help="Number of videos, made one after the other.", metavar="N")] = 1
    dtype: Annotated[
        str | None,
        Option(
            also=("precision", "torch-dtype"),
            help="bf16 or fp32. [default: bf16 on GPUs, fp32 on CPUs]",
            metavar="TYPE",
        ),
    ] = None
    goal: Annotated[
        str,
        Option(
            help="What to minimise: latency (time of one video), throughput (time of all videos) or memory.",
            metavar="GOAL",
        ),
    ] = "latency"
    json: JsonObject = False
    trace: Annotated[
        Path | None,
        Option(help="Write the best plan's simulated run as a trace, for Perfetto.", metavar="OUT.json"),
    ] = None
    plot: Annotated[
        Path | None,
        Option(help="Draw the best plan's simulated run, with a row for each rank.", metavar="OUT.png"),
    ] = None
    overwrite: Overwrite = False
    verbose: Verbose = False


def _more() -> dict[str, Mapping[str, Declared]]:
    from paradit.config.methods.registry import declared_options

    return {"duration": declared_options()}


ENTRY = Entry(
    options=PlanOptions,
    run="paradit.cli.plan:plan",
    example="plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --gpus 8xL40",
    more=_more,
)
