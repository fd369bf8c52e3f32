"""Options of the command `paradit generate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from paradit.cli.commands.command import Command, Entry, Options
from paradit.cli.commands.shared import (
    Crf,
    ExpertStep,
    Fit,
    GuidanceScale,
    GuidanceScale2,
    Height,
    Image,
    JsonLines,
    LastImage,
    Lora,
    NoMetadata,
    NumFrames,
    NumInferenceSteps,
    Overwrite,
    Preset,
    Revision,
    Scheduler,
    Shift,
    Size,
    Strength,
    Timesteps,
    Variant,
    Verbose,
    Video,
    Width,
)
from paradit.config.options import Declared, Option


class GenerateCommand(Command):
    """Command with the repeatable option `--prompt-at TIME TEXT`; typer has none with two values per use."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        joined: list[str] = []
        for arg in args:
            # A time without a space still lacks its text, which follows as the next word.
            if joined[-2:-1] == ["--prompt-at"] and " " not in joined[-1]:
                joined[-1] += f" {arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def _methods() -> str:
    from paradit.config.methods.registry import help_text

    return help_text()


def _ranks() -> str:
    from paradit.engine.launchers import CHOICE, LAUNCHERS

    names = LAUNCHERS.names()
    launchers = (
        f" {CHOICE} names the launcher that starts them: {', '.join(names)}." if len(names) > 1 else ""
    )
    told = "Number of processes on this machine that make each video together."
    return f"{told}{launchers} [default: 1, or torchrun's]"


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Options):
    """Make a video from a prompt.

    Progress goes to stderr, the result to stdout.
    """

    prompt: Annotated[
        str | None, Option(argument=True, help="Text that says what the video should show.", metavar="PROMPT")
    ] = None
    prompts_file: Annotated[
        Path | None,
        Option(
            also=("prompt-file", "prompts"),
            help="File with one prompt per line, instead of PROMPT; blank lines and lines with # are "
            "skipped. In a .jsonl file, each line is a JSON object with fields of a request.",
            metavar="FILE",
        ),
    ] = None
    prompt_at: Annotated[
        list[str] | None,
        Option(
            help="Prompt for a long video from TIME (such as 20s): applies to frame blocks that begin then "
            "or later. May be repeated.",
            metavar="TIME TEXT",
        ),
    ] = None
    model: Annotated[
        str,
        Option(
            also=("ckpt", "checkpoint", "model-id"),
            help="'shapes' (the bundled model), a folder in diffusers' format, or a hub id.",
            metavar="ID_OR_FOLDER",
        ),
    ] = "shapes"
    image: Image = None
    last_image: LastImage = None
    video: Video = None
    strength: Strength = None
    fit: Fit = "cover"
    revision: Revision = None
    variant: Variant = None
    lora: Lora = None
    size: Size = None
    width: Width = None
    height: Height = None
    num_frames: NumFrames = None
    duration: Annotated[
        str | None,
        Option(
            also=("seconds", "length"),
            help="Length of the video, instead of --num-frames, such as 60s or 1.5min; inf: until Ctrl-C. "
            "For videos longer than the model was trained on, see --method.",
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
    negative_prompt: Annotated[
        str | None,
        Option(
            also=("negative", "neg-prompt"),
            help="Text that says what the video should not show. [default: the model's]",
            metavar="TEXT",
        ),
    ] = None
    seed: Annotated[
        str,
        Option(
            help="Seed of the noise, which is the same on every device; random: draw a seed and report it.",
            metavar="S",
        ),
    ] = "0"
    num_videos: Annotated[
        int,
        Option(
            also=("num-samples", "num-videos-per-prompt", "batch-size"),
            help="Number of videos for each prompt, with the seeds S, S + 1, ... from --seed.",
            metavar="N",
        ),
    ] = 1
    fps: Annotated[
        float | None,
        Option(
            also=("frame-rate",), help="Frames per second of the file. [default: the model's]", metavar="F"
        ),
    ] = None
    dtype: Annotated[
        str | None,
        Option(
            also=("precision", "torch-dtype"),
            help="bf16 or fp32. [default: bf16 on a GPU, fp32 on a CPU]",
            metavar="TYPE",
        ),
    ] = None
    vae_tile: Annotated[
        int | None,
        Option(
            also=("vae-tiling", "tile"),
            help="Decode the picture in square tiles of this side, to save memory; overlaps are blended. "
            "[default: the whole picture; HunyuanVideo: 256]",
            metavar="PIXELS",
        ),
    ] = None
    method: Annotated[str | None, Option(help=_methods, metavar="NAME")] = None
    ranks: Annotated[
        int | None,
        Option(
            also=("gpus", "num-gpus", "nproc-per-node", "world-size"),
            help=_ranks,
            metavar="N",
        ),
    ] = None
    placement: Annotated[
        str | None,
        Option(
            help="Ranks of each stage, such as 'denoise=0-2 decode=3 encode=3', or a .json file; auto: "
            "the fastest, planned if `paradit calibrate` has measured this machine, else found by a short "
            "warm-up. [default: all denoise, the first also encodes and decodes]",
            metavar="GROUPS|FILE.json|auto",
        ),
    ] = None
    latents: Annotated[
        Path | None,
        Option(help="Also save the final latents, to compare runs exactly.", metavar="FILE.safetensors"),
    ] = None
    trace: Annotated[
        Path | None,
        Option(
            also=("profile",),
            help="Also write what every rank did when, for Perfetto, chrome://tracing or `paradit trace "
            "summary`.",
            metavar="FILE.json",
        ),
    ] = None
    trace_layers: Annotated[
        bool, Option(help="With --trace, also record every layer; makes the file much larger.")
    ] = False
    output: Annotated[
        str | None,
        Option(
            also=("out", "save-path", "file"),
            short="-o",
            help="OUT.mp4, .webm, .mov, .mkv, .gif, or a folder for PNG files. For several videos: a folder, "
            "or a name to which numbers are added. [default: an .mp4 named after the prompt and the seed]",
            metavar="OUT",
        ),
    ] = None
    crf: Crf = None
    overwrite: Overwrite = False
    no_metadata: NoMetadata = False
    checkpoint_steps: Annotated[
        int | None,
        Option(help="Denoising steps between checkpoints. [default: about 30 s of work]", metavar="N"),
    ] = None
    hang_limit: Annotated[
        float,
        Option(
            also=("timeout",),
            help="Seconds without any progress after which ranks are restarted.",
            metavar="SECONDS",
        ),
    ] = 600
    json: JsonLines = False
    dry_run: Annotated[
        bool, Option(help="Report what would run, with its tokens and memory, without loading weights.")
    ] = False
    explain: Annotated[
        bool,
        Option(help="Explain why this method, placement and attention were chosen, and what takes memory."),
    ] = False
    verbose: Verbose = False


def _more() -> dict[str, Mapping[str, Declared]]:
    from paradit.config.methods.registry import declared_options
    from paradit.config.placement import placement_fields
    from paradit.scheduling.stages import PLACED

    left_out = ("ranks", *PLACED)  # set by `--ranks` and `--placement`
    of_placements = {name: one for name, one in placement_fields().items() if name not in left_out}
    return {"method": declared_options(), "placement": of_placements}


ENTRY = Entry(
    options=GenerateOptions,
    run="paradit.cli.generate:generate",
    example='generate "a red circle moving right" -o circle.mp4',
    more=_more,
)
