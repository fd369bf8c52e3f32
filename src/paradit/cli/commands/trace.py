"""`paradit trace`: its commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paradit.cli.commands.command import Command

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def trace(context: typer.Context) -> None:
    """Look at what `paradit generate --trace` wrote."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(cls=Command, epilog="Example: paradit trace summary trace.json")
def summary(
    trace: Annotated[Path, typer.Argument(help="What --trace has written.", metavar="FILE")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a rank on stdout.")] = False,
) -> int:
    """Each rank's time, busy, communicating or idle, and the part of the communication that was hidden."""
    from paradit.cli.trace import summary as run
    from paradit.streams import code_of_output

    run(trace, as_json=json)
    return code_of_output()
