"""Options of the command `paradit decode`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import Entry
from paradit.cli.commands.shared import Crf, JsonLines, NoMetadata, Overwrite, Revision, Variant, Verbose
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """Make the video of saved latents, with nothing but the model's VAE."""

    latents: Annotated[
        Path,
        Option(argument=True, help="File that `paradit generate --latents` wrote.", metavar="LATENTS"),
    ]
    model: Annotated[
        str,
        Option(
            also=("ckpt", "checkpoint", "model-id"),
            help="Model that made the latents, named as for generate.",
            metavar="ID_OR_FOLDER",
        ),
    ] = "shapes"
    revision: Revision = None
    variant: Variant = None
    output: Annotated[
        str | None,
        Option(
            also=("out", "save-path", "file"),
            short="-o",
            help="OUT.mp4, .webm, .mov, .mkv, .gif, or a folder for PNG. [default: named after LATENTS, "
            ".mp4]",
            metavar="OUT",
        ),
    ] = None
    fps: Annotated[
        float | None,
        Option(also=("frame-rate",), help="Frames per second of the file. [default: the run's]", metavar="F"),
    ] = None
    vae_tile: Annotated[
        int | None,
        Option(
            also=("vae-tiling", "tile"),
            help="Decode the picture in square tiles of this side. [default: the run's]",
            metavar="PIXELS",
        ),
    ] = None
    crf: Crf = None
    overwrite: Overwrite = False
    no_metadata: NoMetadata = False
    json: JsonLines = False
    verbose: Verbose = False


ENTRY = Entry(
    options=DecodeOptions,
    run="paradit.cli.decode:decode",
    example="decode circle.safetensors -o circle.webm",
)
