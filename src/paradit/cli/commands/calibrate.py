"""`paradit calibrate`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The file to write, for `paradit plan --gpus`.", metavar="FILE.toml"
        ),
    ] = Path("machine.toml"),
    ranks: Annotated[
        int | None,
        typer.Option(
            help="Processes that share the machine, each with a GPU. [default: one for each GPU]",
            metavar="N",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Measure this machine, some minutes long, for `paradit plan`; run nothing else meanwhile."""
    from paradit.cli.calibrate import calibrate as run
    from paradit.cli.progress import make_reporter

    with make_reporter(as_json=False) as report:
        run(output, ranks, report, overwrite=overwrite)
