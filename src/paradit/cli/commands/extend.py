"""`paradit extend`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def extend(  # noqa: PLR0917 (typer calls it by name)
    run_dir: Annotated[
        Path, typer.Argument(help="The folder of a run with a long video.", metavar="RUN_DIR")
    ],
    duration: Annotated[
        str | None, typer.Option(help="By how much, such as 30s or 1.5min.", metavar="TIME")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="The same in frames.", metavar="N")] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="A new file. [default: the old one, replaced once it is whole]",
            metavar="OUT",
        ),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Processes on this machine. [default: as before]", metavar="N")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> int:
    """Make a finished long video longer: the same as if it had been asked for at once.

    Goes on from the saved queue of blocks; the last blocks, in which the end shows, are made again.
    """
    from paradit.cli.extend import extend as run
    from paradit.cli.progress import make_reporter

    with make_reporter(json) as report:
        return run(
            run_dir,
            report,
            duration=duration,
            num_frames=num_frames,
            output=output,
            ranks=ranks,
            overwrite=overwrite,
        )
