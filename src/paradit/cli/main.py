"""The command `paradit`: its options, and how it ends. Imports no torch until a video is made.

Exit codes: 0, 1 unexpected error (with its traceback), 2 what was asked for cannot be had (one line),
130 Ctrl-C, 143 termination.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from paradit import __version__
from paradit.cli.signals import Stopped, stop, stopping_cleanly
from paradit.engine.job import Interrupted, RankError
from paradit.engine.run import is_first_rank
from paradit.errors import InputError, OutOfMemory

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

trace_app = typer.Typer(rich_markup_mode=None)
app.add_typer(trace_app, name="trace")

EXAMPLE = 'Example: paradit generate "a red circle moving right" -o circle.mp4'


def main() -> None:
    """Run the command line and exit."""
    code = 0
    try:
        with stopping_cleanly():
            code = _run()
    except Stopped as stopped:  # during the imports, or just before the end
        code = _end(stopped.message, stopped.exit_code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and said
    sys.exit(code)


def _run() -> int:
    try:
        return int(app(prog_name="paradit", standalone_mode=False) or 0)
    except (InputError, OutOfMemory, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else error
        return _end(f"error: {message}", 1 if isinstance(error, OutOfMemory) else 2)
    except RankError as error:
        print(f"paradit: error: a rank failed\n{error}", file=sys.stderr, flush=True)
        return 1
    except (Interrupted, Stopped) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(stop.signum)
        return _end(stopped.message, stopped.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _end(message: str, code: int) -> int:
    """Say the last word, on one line and by one rank, and give the exit code."""
    if is_first_rank():
        print("paradit:", " ".join(message.split()), file=sys.stderr, flush=True)
    return code


@app.callback(invoke_without_command=True, epilog=EXAMPLE)
def paradit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Generate video with diffusion transformers, on one or many GPUs."""
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(epilog=EXAMPLE)
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
            help="Instead of frames: how long the video is, such as 60s or 1.5min. Longer than the model was "
            "trained on: see --method.",
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
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.", metavar="S")] = 0,
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
    method: Annotated[
        str | None,
        typer.Option(
            help="full: the whole video at once. dualparal: long ones in blocks of frames, whose layers the "
            "ranks divide; approximate: a frame sees its neighbours only. [default: full, and dualparal "
            "far beyond the length that the model was trained on]",
            metavar="NAME",
        ),
    ] = None,
    block_frames: Annotated[
        int | None, typer.Option(help="Latent frames of a block. [default: by the model]", metavar="N")
    ] = None,
    context_frames: Annotated[
        int | None,
        typer.Option(
            help="Latent frames that a block sees of each neighbour. [default: by the model]", metavar="N"
        ),
    ] = None,
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
            "the quickest, by a short warm-up. [default: all denoise, the first also encodes and decodes]",
            metavar="GROUPS|FILE.json|auto",
        ),
    ] = None,
    replicas: Annotated[
        int,
        typer.Option(help="Groups of ranks with a whole model each; each makes its own videos.", metavar="N"),
    ] = 1,
    decode_degree: Annotated[
        int,
        typer.Option(
            help="How many decode ranks share a video by tiles (--vae-tile): 1, each decodes whole videos in "
            "turn; or all of them.",
            metavar="1|N",
        ),
    ] = 1,
    cfg_degree: Annotated[
        int,
        typer.Option(help="2: the two guidance branches on different ranks.", metavar="1|2"),
    ] = 1,
    attention: Annotated[
        str,
        typer.Option(
            help="How the ranks share attention: ulysses, pipesp, pipesp-paper, ring, usp; auto: the "
            "quickest of ulysses, pipesp and interleave.",
            metavar="NAME",
        ),
    ] = "auto",
    chunks: Annotated[
        int | None,
        typer.Option(help="Parts in which pipesp's data travel. [default: the quickest]", metavar="N"),
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
        typer.Option(help="Groups of ranks that form usp's ring. [default: 2]", metavar="N"),
    ] = None,
    mesh: Annotated[
        str,
        typer.Option(
            help="usp's axes, that of neighbouring ranks last: ring,ulysses or ulysses,ring.", metavar="AXES"
        ),
    ] = "ring,ulysses",
    kernel: Annotated[
        str,
        typer.Option(help="What computes attention: flash, sage, ... (diffusers' names).", metavar="NAME"),
    ] = "native",
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile what is before and after attention; takes a minute once."),
    ] = False,
    coprocess: Annotated[
        bool,
        typer.Option(
            "--coprocess/--no-coprocess",
            help="Ranks that only decode take a share of the attention while they are idle.",
        ),
    ] = False,
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
            "videos, or a name that gets numbers. [default: named after the prompt, .mp4]",
            metavar="OUT",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
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
) -> int:
    """Make a video from a prompt.

    Progress goes to stderr, the result to stdout.
    """
    from paradit.cli.generate import generate as run
    from paradit.cli.jobs import Options
    from paradit.cli.progress import make_reporter

    options = Options(
        prompt=prompt,
        prompts_file=prompts_file,
        model=model,
        size=size,
        num_frames=num_frames,
        duration=duration,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        seed=seed,
        fps=fps,
        dtype=dtype,
        vae_tile=vae_tile,
        method=method,
        block_frames=block_frames,
        context_frames=context_frames,
        ranks=ranks,
        placement=placement,
        replicas=replicas,
        decode_degree=decode_degree,
        cfg_degree=cfg_degree,
        attention=attention,
        chunks=chunks,
        interleave=interleave,
        ring_degree=ring_degree,
        mesh=mesh,
        kernel=kernel,
        compile=compile,
        coprocess=coprocess,
        latents=latents,
        trace=trace,
        trace_layers=trace_layers,
        output=output,
        overwrite=overwrite,
        checkpoint_steps=checkpoint_steps,
        hang_limit=hang_limit,
        json=json,
        dry_run=dry_run,
    )
    with make_reporter(json) as report:
        return run(options, report)


@app.command(epilog="Example: paradit resume paradit-runs/a-red-circle-20261120-185300-3fa2")
def resume(
    run_dir: Annotated[
        Path | None,
        typer.Argument(
            help="The run's folder. [default: the only one in paradit-runs]",
            metavar="RUN_DIR",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that have come there since.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> int:
    """Go on with a run that was interrupted, killed, or in which requests have failed."""
    from paradit.cli.progress import make_reporter
    from paradit.cli.resume import resume as run

    with make_reporter(json) as report:
        return run(run_dir, report, overwrite=overwrite)


@app.command(epilog="Example: paradit decode circle.safetensors -o circle.webm")
def decode(  # noqa: PLR0917 (typer calls it by name)
    latents: Annotated[
        Path, typer.Argument(help="What `paradit generate --latents` has saved.", metavar="LATENTS")
    ],
    model: Annotated[
        str,
        typer.Option(help="The model that made them: as for generate.", metavar="ID_OR_FOLDER"),
    ] = "shapes",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="OUT.mp4, .webm, .gif, or a folder for PNG. [default: named after LATENTS, .mp4]",
            metavar="OUT",
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second of the file. [default: as asked for]", metavar="F")
    ] = None,
    vae_tile: Annotated[
        int | None,
        typer.Option(help="Decode in square tiles of this side. [default: as the run did]", metavar="PIXELS"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> None:
    """Make the video of saved latents, with nothing but the model's VAE."""
    from paradit.cli.decode import decode as run
    from paradit.cli.progress import make_reporter

    with make_reporter(json) as report:
        run(
            latents,
            report,
            model=model,
            output=output,
            fps=fps,
            vae_tile=vae_tile,
            overwrite=overwrite,
        )


@app.command(epilog="Example: paradit plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --gpus 8xL40")
def plan(  # noqa: PLR0917 (typer calls it by name)
    model: Annotated[
        str,
        typer.Option(
            help="A published model by its hub id, without network; a folder; or a hub id.",
            metavar="ID_OR_FOLDER",
        ),
    ],
    gpus: Annotated[
        str,
        typer.Option(
            help="Such as 8xL40, 2x8xH100 (two machines), or a measured machine's file.",
            metavar="NxGPU|FILE.toml",
        ),
    ],
    size: Annotated[
        str | None, typer.Option(help="Pixels. [default: the model's]", metavar="WxH", show_default=False)
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames, 4n+1. [default: the model's]", metavar="N")
    ] = None,
    duration: Annotated[
        str | None, typer.Option(help="Instead of --num-frames, such as 5s.", metavar="TIME")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Denoising steps. [default: the model's]", metavar="N")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="1: no guidance. [default: the model's]", metavar="G")
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="Videos, one after the other.", metavar="N")] = 1,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.", metavar="TYPE")] = "bf16",
    goal: Annotated[
        str,
        typer.Option(
            help="What is to be least: latency (of one video), throughput (time of all), memory.",
            metavar="GOAL",
        ),
    ] = "latency",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """What a run would take on some GPUs, simulated, and how best to use them; loads nothing."""
    from paradit.cli.plan import PlanOptions
    from paradit.cli.plan import plan as run

    run(
        PlanOptions(
            model=model,
            gpus=gpus,
            size=size,
            num_frames=num_frames,
            duration=duration,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_prompts=num_prompts,
            dtype=dtype,
            goal=goal,
            json=json,
        )
    )


@trace_app.callback(invoke_without_command=True)
def trace(context: typer.Context) -> None:
    """Look at what `paradit generate --trace` wrote."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@trace_app.command(epilog="Example: paradit trace summary trace.json")
def summary(
    trace: Annotated[Path, typer.Argument(help="What --trace has written.", metavar="FILE")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a rank on stdout.")] = False,
) -> None:
    """Each rank's time, busy, communicating or idle, and the part of the communication that was hidden."""
    from paradit.cli.trace import summary as run

    run(trace, as_json=json)
