"""Command `paradit`: its subcommands, and its exit codes. Imports no torch until a video is made.

Exit codes: 0 success; 1 a failure, with its traceback if it was unexpected; 2 a request that cannot be met
(one line); 130 Ctrl-C; 143 termination. A message that cannot be written, as to a full or broken stream, ends
no run.
"""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from paradit import __version__
from paradit.cli.commands import (
    calibrate_options,
    convert_options,
    decode_options,
    doctor_options,
    extend_options,
    generate_options,
    plan_options,
    resume_options,
    runs_options,
    trace_options,
)
from paradit.cli.commands.command import Command
from paradit.cli.signals import Stopped, stop, stopping_cleanly
from paradit.config.errors import InputError, OutOfMemory, RankError
from paradit.config.options import RenamedWarning
from paradit.launcher_environment import forget_launcher, is_spoken_for
from paradit.stopping import Interrupted
from paradit.streams import code_of_output, make_safe

COMMANDS = {
    "generate": generate_options.ENTRY,
    "resume": resume_options.ENTRY,
    "extend": extend_options.ENTRY,
    "runs": runs_options.ENTRY,
    "decode": decode_options.ENTRY,
    "convert": convert_options.ENTRY,
    "plan": plan_options.ENTRY,
    "calibrate": calibrate_options.ENTRY,
    "doctor": doctor_options.ENTRY,
}


class Commands(TyperGroup):
    """Group of all subcommands; each is built only when needed, so that listing them loads no options."""

    brief = False
    """Whether subcommands are built with only their names and help texts, which is enough to list them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> object:  # type: ignore[override]
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        if self.brief:
            first, _, _ = (entry.options.__doc__ or "").partition("\n\n")
            return TyperCommand(cmd_name, short_help=" ".join(first.split()))
        kind = generate_options.GenerateCommand if cmd_name == "generate" else Command
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command(cmd_name, cls=kind, epilog=f"Example: paradit {entry.example}")(entry.function())
        return typer.main.get_command(alone)

    def get_help_option(self, ctx: typer.Context) -> TyperOption | None:  # type: ignore[override]
        """Return the `--help` option with a boolean default; typer imports pydantic to convert any other."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option

    def format_commands(self, ctx: typer.Context, formatter: object) -> None:  # type: ignore[override]
        self.brief = True
        super().format_commands(ctx, formatter)  # type: ignore[arg-type]
        self.brief = False


app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
JOINING = ("generate", "resume", "extend")
"""Names of the commands for which it matters whether a launcher such as torchrun has started this process as
one of several ranks. Other commands run as a single process in any case."""


SYSTEMS = ("linux", "darwin")
"""Beginnings of the names in `sys.platform` of the operating systems on which ParaDiT runs."""
EXPECTED = (
    InputError, OutOfMemory, FloatingPointError, typer.TyperException, RankError, Interrupted, Stopped,
)  # fmt: skip
"""Exceptions that end a command with a short message instead of a traceback."""


def main() -> None:
    """Run the command line, then exit with its exit code."""
    code = 0
    make_safe()
    warnings.simplefilter("always", RenamedWarning)  # Python hides those from imported modules
    try:
        check_system()  # before signals that only these systems have
        with stopping_cleanly():
            try:
                code = int(app(prog_name="paradit", standalone_mode=False) or 0)
            except EXPECTED as error:
                code = told(error)
    except InputError as error:
        code = told(error)
    except Stopped as stopped:  # raised during imports, or just before the end
        code = _end(stopped.message, stopped.exit_code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and printed
    sys.exit(code)


def check_system() -> None:
    """Raise InputError on an operating system on which ParaDiT does not run."""
    if not sys.platform.startswith(SYSTEMS):
        raise InputError(f"ParaDiT runs on Linux and macOS, not on {sys.platform}: on Windows, use WSL 2")


def told(error: BaseException) -> int:
    """Print why a command has ended, and return its exit code.

    error: exception that ended it, of one of the classes in `EXPECTED`.
    """
    if isinstance(error, RankError):
        print(f"paradit: error: a rank failed\n{error}", file=sys.stderr, flush=True)
        return 1
    if isinstance(error, Interrupted | Stopped):
        stopped = error if isinstance(error, Stopped) else Stopped(stop.signum)
        return _end(stopped.message, stopped.exit_code)
    message = error.format_message() if isinstance(error, typer.TyperException) else error
    return _end(f"error: {message}", 1 if isinstance(error, OutOfMemory | FloatingPointError) else 2)


def _end(message: str, code: int) -> int:
    """Print a command's last message on one line, and return `code`, its exit code.

    Under torchrun only the first rank prints it.
    """
    if not is_spoken_for():
        print("paradit:", " ".join(message.split()), file=sys.stderr, flush=True)
    return code


@app.callback(invoke_without_command=True, epilog=f"Example: paradit {generate_options.ENTRY.example}")
def paradit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> int:
    """Generate video with diffusion transformers, on one or many GPUs."""
    if context.invoked_subcommand not in JOINING:  # one process, even in a shell with a launcher's variables
        forget_launcher()
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
    return code_of_output()


app.add_typer(trace_options.app, name="trace")
