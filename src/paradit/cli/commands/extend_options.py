"""Options of the command `paradit extend`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from paradit.cli.commands.command import RUN, Entry
from paradit.cli.commands.shared import JsonLines, Verbose
from paradit.config.options import Option


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """Make a finished long video longer, with the same result as if it had been requested at once.

    Resumes from the saved queue of blocks. The last blocks, denoised next to the old end, are made again.
    """

    run_dir: Annotated[
        Path, Option(argument=True, help="Folder of a run that made a long video.", metavar="RUN_DIR")
    ]
    duration: Annotated[
        str | None,
        Option(also=("seconds", "length"), help="Time to add, such as 30s or 1.5min.", metavar="TIME"),
    ] = None
    num_frames: Annotated[
        int | None,
        Option(
            also=("frames", "video-length"),
            help="Number of frames to add, instead of --duration.",
            metavar="N",
        ),
    ] = None
    output: Annotated[
        str | None,
        Option(
            also=("out", "save-path", "file"),
            short="-o",
            help="New file. [default: the old one, replaced when the longer video is complete]",
            metavar="OUT",
        ),
    ] = None
    ranks: Annotated[
        int | None, Option(help="Number of processes on this machine. [default: as before]", metavar="N")
    ] = None
    overwrite: Annotated[bool, Option(also=("force",), help="Replace OUT if it exists.")] = False
    json: JsonLines = False
    verbose: Verbose = False


ENTRY = Entry(
    options=ExtendOptions,
    run="paradit.cli.extend:extend",
    example=f"extend {RUN} --duration 30s",
)
