"""The public surface, written out in `tests/data/public.json`, so that it changes on purpose only.

`make public` writes that file anew: PYTHONPATH=src:tests/helpers python tests/unit/test_public.py.
"""

from __future__ import annotations

import inspect
import io
import json
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pytest
import typer

import paradit
import paradit.pipeline
from paradit.attention.registry import FORMS
from paradit.cli.commands.command import Command, Entry
from paradit.cli.commands.trace_options import SUMMARY
from paradit.cli.main import COMMANDS, app, main
from paradit.cli.reporters import JsonReporter
from paradit.cli.runs import Found
from paradit.cli.signals import Stopped, stopping_cleanly
from paradit.config.errors import InputError
from paradit.config.methods.registry import METHODS
from paradit.config.options import Declared, Option, RenamedWarning, decode
from paradit.engine.engine_job import EngineJob
from paradit.engine.events import EVENTS
from paradit.models.registry import FAMILIES
from paradit.text_to_video import Generated, text_to_video
from paradit.trace.summary import RankSummary
from paradit.video.writer import open_video
from paths import DATA
from sample_events import sample

FILE = DATA / "public.json"
WHAT_TO_DO = """
The public surface is not what tests/data/public.json says. Something new: run `make public`, and commit the
file. Something renamed or removed: the former name must work for one more minor version, with
a warning (an option: `Option(formerly=...)`); only then does it go from the file."""

Surface = dict[str, dict[str, list[str]]]
"""Type of the public surface: what is promised, by section and name."""
MEMBERS: dict[type, tuple[str, ...]] = {
    paradit.Engine: ("submit", "close"),
    EngineJob: ("status", "cancel", "result", "frames", "events"),
    Generated: ("save",),
    paradit.Request: ("of",),
    paradit.Placement: ("of", "flat"),
}
"""Members of classes that are promised in addition to their fields; all others are internal."""
MADE_BY_OTHERS = (EngineJob, Generated)
"""Classes whose instances only the program makes."""
FUNCTIONS = {
    "paradit.generate": paradit.generate,
    "paradit.parallelize": paradit.parallelize,
    "paradit.pipeline.load": paradit.pipeline.load,
    "paradit.text_to_video.text_to_video": text_to_video,
    "paradit.video.writer.open_video": open_video,
}
ERRORS = (InputError, paradit.JobError, paradit.JobCancelled, paradit.OutOfMemory, paradit.RankError)
EXIT_CODES = {
    0: "all is done",
    1: "something failed, or could not be said",
    2: "what is asked for cannot be had",
    130: "Ctrl-C",
    143: "termination",
}


def surface() -> Surface:
    """Return the whole public surface."""
    return {
        "paradit": {"__all__": sorted(vars(paradit)["__all__"])},
        "python": dict(signatures()),
        "errors": {kind.__name__: [base.__name__ for base in kind.__bases__] for kind in ERRORS},
        "events": {name: [field.name for field in fields(kind)] for name, kind in EVENTS.items()},
        "json": json_objects(),
        "names": {one.kind: list(one.names()) for one in (METHODS, FORMS, FAMILIES)},
        "exit codes": {str(code): [meaning] for code, meaning in EXIT_CODES.items()},
        "options": options(),
    }


def signatures() -> Iterator[tuple[str, list[str]]]:
    """Yield the parameters and defaults of each function and class; mypy checks their types."""
    for name, function in FUNCTIONS.items():
        yield name, parameters(function)
    for kind, names in MEMBERS.items():
        if kind in MADE_BY_OTHERS:
            yield kind.__name__, [field.name for field in fields(kind)] if is_dataclass(kind) else []
        else:
            yield kind.__name__, parameters(kind)
        for name in names:
            member = getattr(kind, name)
            yield f"{kind.__name__}.{name}", [] if isinstance(member, property) else parameters(member)


def parameters(made: Any) -> list[str]:
    said = []
    for one in inspect.signature(made).parameters.values():
        star = {"VAR_KEYWORD": "**", "KEYWORD_ONLY": "*, "}.get(one.kind.name, "")
        said.append(f"{star}{one.name}" + ("" if one.default is one.empty else f" = {one.default!r}"))
    return [parameter for parameter in said if parameter != "self"]


def json_objects() -> dict[str, list[str]]:
    """Return the fields of each command's `--json` objects, by command and `event`."""
    with TemporaryDirectory() as folder:
        video = ["generate", "p", "-o", f"{folder}/a.mp4", "--num-inference-steps", "1", "--num-frames", "5"]
        lines = {
            "generate --dry-run": json_lines([*video, "--json", "--dry-run"]),
            "generate": [*shown_events(), *json_lines([*video, "--json"])],
            "plan": json_lines(["plan", "--model", "shapes", "--gpus", "2xL40", "--json"]),
        }
    said: dict[str, list[str]] = {}
    for command, objects in lines.items():
        for one in objects:
            name = f"{command}: {one.pop('event')}"
            said[name] = list(dict.fromkeys([*said.get(name, []), *one]))
            if one.get("best"):
                said["plan: each of best and usual"] = list(one["best"][0])
    said["runs"] = [field.name for field in fields(Found)]
    said["trace summary"] = [*(field.name for field in fields(RankSummary)), "hidden"]
    return dict(sorted(said.items()))


def shown_events() -> list[dict[str, Any]]:
    """Return a JSON line of every event that has one, except those that a real run shows better."""
    out, report = io.StringIO(), JsonReporter()
    with redirect_stdout(out):
        for kind in EVENTS.values():
            report.emit(sample(kind))
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    return [one for one in found if one["event"] not in ("result", "plan", "placement")] + [
        {"event": "placement", **paradit.Placement().flat(), "reason": "", "seconds": {}}
    ]


def json_lines(arguments: list[str]) -> list[dict[str, Any]]:
    out = io.StringIO()
    with redirect_stdout(out):
        app(arguments, standalone_mode=False)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def options() -> dict[str, list[str]]:
    entries: dict[str, Entry] = {**COMMANDS, "trace summary": SUMMARY}
    return {
        command: [option(field) for field in entry.fields().values()] for command, entry in entries.items()
    }


def option(field: Declared) -> str:
    """Return an option's flag, type and default, as `--help` shows them."""
    one, name = field.option, field.name.replace("_", "-")
    flags = [one.metavar] if one.argument else [*filter(None, [one.short]), f"--{name}"]
    flags += [f"--no-{name}"] if one.negatable else []
    said = re.search(r"\[default: (.*)\]", one.help_text)
    default = "required" if field.default is MISSING else said[1] if said else field.default
    return f"{' '.join(flags)} ({inspect.formatannotation(field.kind)}): {default}"


@pytest.fixture(scope="module")
def found() -> Surface:
    return surface()


@pytest.mark.parametrize("section", json.loads(FILE.read_text()) if FILE.exists() else [])
def test_nothing_public_changes_unawares(section: str, found: Surface) -> None:
    written, there = (
        [f"{name}: {one}" for name, all_of_it in part.items() for one in ["", *all_of_it]]
        for part in (json.loads(FILE.read_text())[section], found[section])
    )
    gone = [f"- {line}" for line in written if line not in there]
    new = [f"+ {line}" for line in there if line not in written]
    assert not gone and not new, "\n".join([WHAT_TO_DO, *gone, *new])


def test_every_section_is_written(found: Surface) -> None:
    assert list(json.loads(FILE.read_text())) == list(found), WHAT_TO_DO


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["paradit", *arguments])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        main()
    signal.signal(signal.SIGINT, before)
    return ended.value.code


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(monkeypatch, "--version") == 0
    assert exit_code(monkeypatch, "generate", "--no-such") == 2
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "paradit", "--version"]
        assert subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL, check=False).returncode == 1
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(Stopped) as stopped, stopping_cleanly():
            signal.raise_signal(number)
        assert stopped.value.exit_code in EXIT_CODES


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Options of a made-up command, some of which had other names."""

    num_inference_steps: Annotated[int, Option(formerly=("num_steps",), help="Steps.", least=1)] = 4
    trim: Annotated[bool, Option(formerly=("cut",), help="Whether to cut.", negatable=True)] = True


MADE: list[Renamed] = []
"""Options that the command of the next test was called with."""


def test_an_option_s_former_name_works_and_warns() -> None:
    MADE.clear()
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    entry = Entry(options=Renamed, run=f"{__name__}:MADE.append", example="")
    alone.command("renamed", cls=Command)(entry.function())
    said = (
        "--num-steps is now called --num-inference-steps; the next minor version will not accept the old name"
    )
    with pytest.warns(RenamedWarning, match=said):
        alone(["--num-steps=7", "--no-trim"], standalone_mode=False)
    with pytest.warns(RenamedWarning, match="--no-cut is now called --no-trim"):
        alone(["--num-inference-steps", "9", "--no-cut"], standalone_mode=False)
    expected = [Renamed(num_inference_steps=7, trim=False), Renamed(num_inference_steps=9, trim=False)]
    assert expected == MADE
    assert issubclass(RenamedWarning, DeprecationWarning)


def test_a_file_s_former_name_works_and_warns() -> None:
    with pytest.warns(RenamedWarning, match="num_steps is now called num_inference_steps"):
        assert decode(Renamed, {"num_steps": 7}) == Renamed(num_inference_steps=7)
    with pytest.raises(InputError, match=r"num_steps .* num_inference_steps: give only num_inference_steps"):
        decode(Renamed, {"num_steps": 7, "num_inference_steps": 7})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(Renamed, {"num_inference_steps": 7}) == Renamed(num_inference_steps=7)


if __name__ == "__main__":
    FILE.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
