"""`paradit decode`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="Write no prompt, seed or model into the file.")
    ] = False,
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
            metadata=not no_metadata,
        )
