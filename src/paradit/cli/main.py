"""The command `paradit`: its options, and how it ends. Imports no torch until a video is made.

Exit codes: 0, 1 unexpected error (with its traceback), 2 what was asked for cannot be had (one line),
130 Ctrl-C, 143 termination. That something cannot be said, as on a full or broken stream, ends no run.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from paradit import __version__
from paradit.cli.commands import calibrate, decode, doctor, extend, generate, plan, resume, runs, trace
from paradit.cli.commands.command import Command
from paradit.cli.signals import Stopped, stop, stopping_cleanly
from paradit.config.errors import InputError, OutOfMemory, RankError
from paradit.engine.job import Interrupted
from paradit.launched import forget_launcher, is_spoken_for
from paradit.streams import code_of_output, make_safe

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

JOINING = ("generate", "resume", "extend")
"""Commands for which it matters whether a launcher has started this process as one of several ranks."""
EXAMPLE = 'Example: paradit generate "a red circle moving right" -o circle.mp4'


def main() -> None:
    """Run the command line and exit."""
    code = 0
    make_safe()
    try:
        with stopping_cleanly():
            code = _run()
    except Stopped as stopped:  # during the imports, or just before the end
        code = _end(stopped.message, stopped.exit_code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and said
    sys.exit(code)


def _run() -> int:
    try:
        return int(app(prog_name="paradit", standalone_mode=False) or 0)
    except (InputError, OutOfMemory, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else error
        return _end(f"error: {message}", 1 if isinstance(error, OutOfMemory) else 2)
    except RankError as error:
        print(f"paradit: error: a rank failed\n{error}", file=sys.stderr, flush=True)
        return 1
    except (Interrupted, Stopped) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(stop.signum)
        return _end(stopped.message, stopped.exit_code)


def _end(message: str, code: int) -> int:
    """Say the last word, on one line and by one rank, and give the exit code."""
    if not is_spoken_for():
        print("paradit:", " ".join(message.split()), file=sys.stderr, flush=True)
    return code


@app.callback(invoke_without_command=True, epilog=EXAMPLE)
def paradit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> int:
    """Generate video with diffusion transformers, on one or many GPUs."""
    if context.invoked_subcommand not in JOINING:
        forget_launcher()
    if version:
        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
    return code_of_output()


app.command(epilog=EXAMPLE, cls=generate.GenerateCommand)(generate.generate)
app.command(cls=Command, epilog="Example: paradit resume paradit-runs/a-red-circle-20261120-185300-3fa2")(
    resume.resume
)
app.command(
    cls=Command,
    epilog="Example: paradit extend paradit-runs/a-red-circle-20261120-185300-3fa2 --duration 30s",
)(extend.extend)
app.command(cls=Command, epilog="Example: paradit runs --remove a-red-circle-20261120-185300-3fa2")(runs.runs)
app.command(cls=Command, epilog="Example: paradit decode circle.safetensors -o circle.webm")(decode.decode)
app.command(cls=Command, epilog="Example: paradit plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --gpus 8xL40")(
    plan.plan
)
app.command(cls=Command, epilog="Example: paradit calibrate -o machine.toml")(calibrate.calibrate)
app.command(cls=Command, epilog="Example: paradit doctor")(doctor.doctor)
app.add_typer(trace.app, name="trace")
