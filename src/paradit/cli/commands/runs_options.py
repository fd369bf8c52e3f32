"""Options of the command `paradit runs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import Entry
from paradit.cli.commands.shared import Verbose
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """List the runs that can be resumed or extended, with their sizes; or remove some."""

    folder: Annotated[
        Path,
        Option(
            argument=True, help="Folder that contains paradit-runs, or paradit-runs itself.", metavar="FOLDER"
        ),
    ] = Path()
    remove: Annotated[
        list[str] | None,
        Option(help="Remove this run's folder; may be repeated.", metavar="RUN"),
    ] = None
    json: Annotated[bool, Option(help="Write one JSON object per run to stdout.")] = False
    verbose: Verbose = False


ENTRY = Entry(
    options=RunsOptions,
    run="paradit.cli.runs:runs",
    example="runs --remove a-red-circle-20261120-185300-3fa2",
)
