"""Subcommands of `paradit trace`, and their options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from paradit.cli.commands.command import Command, Entry
from paradit.config.options import Option

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def trace(context: typer.Context) -> None:
    """Look at what `paradit generate --trace` wrote."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@dataclass(frozen=True, kw_only=True)
class SummaryOptions:
    """Report each rank's time as busy, communicating or idle, and how much communication was hidden."""

    trace: Annotated[Path, Option(argument=True, help="File that --trace wrote.", metavar="FILE")]
    json: Annotated[bool, Option(help="Write one JSON object per rank to stdout.")] = False


SUMMARY = Entry(
    options=SummaryOptions,
    run="paradit.cli.trace:summary",
    example="trace summary trace.json",
)
app.command("summary", cls=Command, epilog=f"Example: paradit {SUMMARY.example}")(SUMMARY.function())
