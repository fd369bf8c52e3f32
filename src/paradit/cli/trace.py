"""Check of the option `--trace`, and the command `paradit trace summary`, which summarises a trace.

Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from paradit.cli.commands.generate_options import GenerateOptions
from paradit.cli.commands.trace_options import SummaryOptions
from paradit.cli.text import amount, duration, table
from paradit.config.errors import InputError
from paradit.launcher_environment import launched
from paradit.streams import code_of_output
from paradit.trace.summary import RankSummary, read_trace, summarize
from paradit.video.writer import check_file

_COLUMNS = ("rank", "preparing", "busy", "communicating", "idle", "sent", "hidden")


def check_trace(options: GenerateOptions) -> None:
    """Refuse a trace file that cannot be written. Raises InputError; makes no file."""
    path = options.trace
    if path is None:
        if options.trace_layers:
            raise InputError("trace_layers needs --trace FILE.json")
        return
    if path.suffix != ".json":
        raise InputError(f"trace {str(path)!r} must end in .json: use {str(path) + '.json'!r}")
    if launched():
        raise InputError(
            "--trace does not work under torchrun: use --ranks instead of torchrun, or leave it out"
        )
    check_file("trace", path, overwrite=options.overwrite)


def summary(options: SummaryOptions) -> int:
    """Print how each rank in a trace spent its time (busy, communicating, idle); return the exit code.

    Raises InputError if the file is not a trace.
    """
    ranks = summarize(read_trace(options.trace))
    if options.json:
        for rank in ranks:
            print(json.dumps({**asdict(rank), "hidden": rank.hidden}))
    else:
        print(table([_COLUMNS, *(_row(rank) for rank in ranks)]))
    return code_of_output()


def _row(rank: RankSummary) -> tuple[str, ...]:
    seconds = (rank.preparing, rank.busy, rank.communicating, rank.idle)
    total = sum(seconds)
    parts = [f"{duration(part)} ({100 * part / total:.0f} %)" for part in seconds]
    return str(rank.rank), *parts, amount(rank.bytes_sent, "B"), _hidden(rank)


def _hidden(rank: RankSummary) -> str:
    if not rank.messages:
        return "-"
    return "unknown" if rank.hidden is None else f"{100 * rank.hidden:.0f} %"
