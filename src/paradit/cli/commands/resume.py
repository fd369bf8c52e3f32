"""`paradit resume`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import RUN, Entry
from paradit.cli.commands.shared import JsonLines
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Go on with a run that was interrupted, killed, or in which requests have failed."""

    run_dir: Annotated[
        Path | None,
        Option(
            argument=True,
            help="The run's folder. [default: the only one in paradit-runs]",
            metavar="RUN_DIR",
        ),
    ] = None
    overwrite: Annotated[bool, Option(also=("force",), help="Replace files that have come there since.")] = (
        False
    )
    json: JsonLines = False


def resume(options: ResumeOptions) -> int | None:
    """Run the command."""
    from paradit.cli.progress import make_reporter
    from paradit.cli.resume import resume as run
    from paradit.launched import is_first_rank

    with make_reporter(options.json, silent=not is_first_rank()) as report:
        return run(options.run_dir, report, overwrite=options.overwrite)


ENTRY = Entry(
    options=ResumeOptions,
    run=resume,
    example=f"resume {RUN}",
)
