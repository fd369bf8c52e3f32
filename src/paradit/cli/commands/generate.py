"""`paradit generate`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from paradit.attention import registry as forms
from paradit.cli.commands.command import Command, declared_option
from paradit.config.methods import registry as methods


class GenerateCommand(Command):
    """Takes `--prompt-at TIME TEXT`: typer has no options of two values that may be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined: list[str] = []
        for arg in args:
            if joined[-2:-1] == ["--prompt-at"] and " " not in joined[-1]:
                joined[-1] += f" {arg}"
            else:
                joined.append(arg)
        return super().parse_args(ctx, joined)


def generate(  # noqa: PLR0917 (typer calls it by name)
    prompt: Annotated[
        str | None, typer.Argument(help="What the video shows.", metavar="PROMPT", show_default=False)
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="One prompt a line instead; blank lines and lines with # are skipped.", metavar="FILE"
        ),
    ] = None,
    prompt_at: Annotated[
        list[str] | None,
        typer.Option(
            help="What a long video shows from TIME (such as 20s) on: in blocks that begin then or later. "
            "May be repeated.",
            metavar="TIME TEXT",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="The bundled model, a diffusers folder, or a hub id.", metavar="ID_OR_FOLDER"),
    ] = "shapes",
    size: Annotated[
        str | None,
        typer.Option(help="Pixels, multiples of 16. [default: the model's]", metavar="WxH"),
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames, 4n+1. [default: the model's]", metavar="N")
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(
            help="Instead of frames: how long the video is, such as 60s or 1.5min; inf: until Ctrl-C. Longer "
            "than the model was trained on: see --method.",
            metavar="TIME",
        ),
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Denoising steps. [default: the model's]", metavar="N")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            help="How closely to follow the prompt; 1: no guidance. [default: the model's]", metavar="G"
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the video does not show. [default: the model's]", metavar="TEXT")
    ] = None,
    seed: Annotated[
        str,
        typer.Option(
            help="The same seed gives the same video; random: one is chosen, and said.", metavar="S"
        ),
    ] = "0",
    fps: Annotated[
        float | None, typer.Option(help="Frames per second of the file. [default: the model's]", metavar="F")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16 or fp32. [default: bf16 on a GPU, fp32 on a CPU]", metavar="TYPE"),
    ] = None,
    vae_tile: Annotated[
        int | None,
        typer.Option(
            help="Decode the picture in square tiles of this side: less memory, blended. [default: the "
            "picture whole; HunyuanVideo: 256]",
            metavar="PIXELS",
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help=methods.help_text(), metavar="NAME")] = None,
    block_frames: Annotated[int | None, declared_option("block_frames")] = None,
    context_frames: Annotated[int | None, declared_option("context_frames")] = None,
    left_context: Annotated[str | None, declared_option("left_context")] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            help="Processes on this machine that make each video together. [default: 1, or torchrun's]",
            metavar="N",
        ),
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            help="Ranks of each stage, such as 'denoise=0-2 decode=3 encode=3', or a .json file; auto: "
            "the quickest, as planned where `paradit calibrate` has measured this machine, else by a short "
            "warm-up. [default: all denoise, the first also encodes and decodes]",
            metavar="GROUPS|FILE.json|auto",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Groups of ranks with a whole model each; each makes its own videos. [default: 1]",
            metavar="N",
        ),
    ] = None,
    decode_degree: Annotated[
        int | None,
        typer.Option(
            help="How many decode ranks share a video by tiles (--vae-tile): 1, each decodes whole videos in "
            "turn; or all of them. [default: 1]",
            metavar="1|N",
        ),
    ] = None,
    cfg_degree: Annotated[
        int | None,
        typer.Option(
            help="2: the two guidance branches on different ranks. [default: 1, or as planned where `paradit "
            "calibrate` has measured this machine]",
            metavar="1|2",
        ),
    ] = None,
    pipeline_degree: Annotated[int | None, declared_option("pipeline_degree")] = None,
    attention: Annotated[
        str | None,
        typer.Option(help=forms.help_text(), metavar="NAME"),
    ] = None,
    chunks: Annotated[
        int | None,
        declared_option("chunks"),
    ] = None,
    interleave: Annotated[
        bool | None,
        typer.Option(
            "--interleave/--no-interleave",
            help="A guidance branch computes while the other's data travel. [default: auto's choice]",
        ),
    ] = None,
    ring_degree: Annotated[
        int | None,
        declared_option("ring_degree"),
    ] = None,
    mesh: Annotated[
        str | None,
        declared_option("mesh"),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            help="What computes attention: flash, sage, ... (diffusers' names). [default: native]",
            metavar="NAME",
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option("--compile", help="Compile what is before and after attention; takes a minute once."),
    ] = None,
    coprocess: Annotated[
        bool | None,
        typer.Option(
            "--coprocess/--no-coprocess",
            help="Ranks that only decode take a share of the attention while they are idle.",
        ),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option(
            help="Also save the final latents, to compare runs exactly.", metavar="FILE.safetensors"
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Also write what every rank did and when, for Perfetto or chrome://tracing, and "
            "`paradit trace summary`.",
            metavar="FILE.json",
        ),
    ] = None,
    trace_layers: Annotated[
        bool, typer.Option("--trace-layers", help="With every layer; the file grows accordingly.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="OUT.mp4, .webm, .gif, or a folder for PNG. With --prompts-file: a folder for the "
            "videos, or a name that gets numbers. [default: named after the prompt and the seed, .mp4]",
            metavar="OUT",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Write no prompt, seed or model into the video's file.")
    ] = False,
    checkpoint_steps: Annotated[
        int | None,
        typer.Option(help="Denoising steps between checkpoints. [default: about 30 s of work]", metavar="N"),
    ] = None,
    hang_limit: Annotated[
        float,
        typer.Option(
            help="Seconds without any progress after which ranks are started anew.", metavar="SECONDS"
        ),
    ] = 600.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, its tokens and memory; load no weights.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why: the method, the attention, the memory by part.")
    ] = False,
) -> int:
    """Make a video from a prompt.

    Progress goes to stderr, the result to stdout.
    """
    given = locals()
    from paradit.cli.generate import generate as run
    from paradit.cli.jobs import Options
    from paradit.cli.progress import make_reporter
    from paradit.launched import launched

    options = Options(**given)
    here = launched()
    silent = here is not None and here.rank > 0 and (here.by_torchrun or not dry_run)
    with make_reporter(json, silent=silent) as report:
        return run(options, report)
