"""`paradit resume`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from paradit.launched import is_first_rank

    with make_reporter(json, silent=not is_first_rank()) as report:
        return run(run_dir, report, overwrite=overwrite)
