"""`paradit runs`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[
        Path,
        typer.Argument(help="The folder that has paradit-runs in it, or is it.", metavar="FOLDER"),
    ] = Path(),
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", help="Remove this run's folder; may be repeated.", metavar="RUN"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a run on stdout.")] = False,
) -> int:
    """List the runs that can be resumed or extended, with their sizes; or remove some."""
    from paradit.cli.runs import list_runs, remove_runs
    from paradit.streams import code_of_output

    if remove:
        remove_runs(folder, remove, as_json=json)
    else:
        list_runs(folder, as_json=json)
    return code_of_output()
