"""Options of the command `paradit calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import Entry
from paradit.cli.commands.shared import Verbose
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Measure this machine for `paradit plan`. It takes some minutes; run nothing else meanwhile."""

    output: Annotated[
        Path,
        Option(short="-o", help="File to write, for `paradit plan --gpus`.", metavar="FILE.toml"),
    ] = Path("machine.toml")
    ranks: Annotated[
        int | None,
        Option(
            help="Number of processes, each with a GPU of its own. [default: one for each GPU]",
            metavar="N",
        ),
    ] = None
    overwrite: Annotated[bool, Option(also=("force",), help="Replace the file if it exists.")] = False
    verbose: Verbose = False


ENTRY = Entry(
    options=CalibrateOptions,
    run="paradit.cli.calibrate:calibrate",
    example="calibrate -o machine.toml",
)
