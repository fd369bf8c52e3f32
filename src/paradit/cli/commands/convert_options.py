"""Options of the command `paradit convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import Entry
from paradit.cli.commands.shared import Verbose
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Make a model folder from a checkpoint in its authors' own format.

    Pickled weights are written as safetensors. Only tensors are read from them, so no code in them runs.
    """

    checkpoint: Annotated[
        Path,
        Option(
            argument=True, help="Folder of a published checkpoint: Open-Sora-Plan v1.3.", metavar="CHECKPOINT"
        ),
    ]
    output: Annotated[
        Path,
        Option(
            also=("out", "save-path", "folder"),
            short="-o",
            help="New folder for the model.",
            metavar="FOLDER",
        ),
    ]
    transformer: Annotated[
        str | None,
        Option(
            help="Name of the transformer's folder in CHECKPOINT. [default: the only one]", metavar="NAME"
        ),
    ] = None
    text_encoder: Annotated[
        Path | None,
        Option(
            help="Folder of google/mt5-xxl. [default: text_encoder in CHECKPOINT]",
            metavar="FOLDER",
        ),
    ] = None
    verbose: Verbose = False


ENTRY = Entry(
    options=ConvertOptions,
    run="paradit.cli.convert:convert",
    example="convert Open-Sora-Plan-v1.3.0 -o osp --transformer any93x640x640 --text-encoder mt5-xxl",
)
