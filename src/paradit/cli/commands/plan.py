"""`paradit plan`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paradit.cli.commands.command import declared_option


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
            help="Such as 8xL40, 2x8xH100 (two machines), 'RTX 4090', or a measured machine's file.",
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
        str | None,
        typer.Option(
            help="Instead of --num-frames, such as 5s; long ones also in blocks (dualparal, approximate).",
            metavar="TIME",
        ),
    ] = None,
    block_frames: Annotated[int | None, declared_option("block_frames")] = None,
    context_frames: Annotated[int | None, declared_option("context_frames")] = None,
    left_context: Annotated[str | None, declared_option("left_context")] = None,
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
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the best plan's run as a trace, for Perfetto.", metavar="OUT.json"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the best plan's run, a row for each rank.", metavar="OUT.png")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> int:
    """What a run would take on some GPUs, simulated, and how best to use them; loads nothing."""
    given = locals()
    from paradit.cli.plan import PlanOptions
    from paradit.cli.plan import plan as run
    from paradit.streams import code_of_output

    run(PlanOptions(**given))
    return code_of_output()
