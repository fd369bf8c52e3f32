"""`paradit calibrate`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import Entry
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Measure this machine, some minutes long, for `paradit plan`; run nothing else meanwhile."""

    output: Annotated[
        Path,
        Option(short="-o", help="The file to write, for `paradit plan --gpus`.", metavar="FILE.toml"),
    ] = Path("machine.toml")
    ranks: Annotated[
        int | None,
        Option(
            help="Processes that share the machine, each with a GPU. [default: one for each GPU]",
            metavar="N",
        ),
    ] = None
    overwrite: Annotated[bool, Option(also=("force",), help="Replace a file that exists.")] = False


def calibrate(options: CalibrateOptions) -> int | None:
    """Run the command."""
    from paradit.cli.calibrate import calibrate as run
    from paradit.cli.progress import make_reporter

    with make_reporter(as_json=False) as report:
        run(options.output, options.ranks, report, overwrite=options.overwrite)
    return None


ENTRY = Entry(
    options=CalibrateOptions,
    run=calibrate,
    example="calibrate -o machine.toml",
)
