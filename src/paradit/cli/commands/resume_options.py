"""Options of the command `paradit resume`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import RUN, Entry
from paradit.cli.commands.shared import JsonLines, Verbose
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Resume a run that was interrupted or killed, or in which requests have failed."""

    run_dir: Annotated[
        Path | None,
        Option(
            argument=True,
            help="Folder of the run. [default: the only unfinished one in paradit-runs]",
            metavar="RUN_DIR",
        ),
    ] = None
    overwrite: Annotated[
        bool, Option(also=("force",), help="Replace output files that something else has written since.")
    ] = False
    json: JsonLines = False
    verbose: Verbose = False


ENTRY = Entry(
    options=ResumeOptions,
    run="paradit.cli.resume:resume",
    example=f"resume {RUN}",
)
