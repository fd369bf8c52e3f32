"""Write the tables of docs/reference/ whose content is declared in the code: options, events, files, GPUs.

A page marks the place of a table; the text around the marks is written by hand:

    <!-- generated: NAME -->
    <!-- end -->

Run `python benchmarks/reference_pages.py` (or `make reference`) after changing a declaration.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from paradit.cli.commands.command import Entry
from paradit.cli.commands.trace_options import SUMMARY
from paradit.cli.main import COMMANDS
from paradit.cli.reporters import JsonReporter
from paradit.config.options import Declared, declared
from paradit.config.placement import Placement, placement_fields
from paradit.engine.events import EVENTS
from paradit.models.defaults import Defaults
from paradit.planner import hardware
from paradit.planner.hardware import Device, Link
from paradit.progress import Event

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
PAGES = sorted(REFERENCE.glob("*.md"))
MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
DEFAULT = re.compile(r" \[default: (.*)\]$")
WORDS: dict[object, str] = {
    bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"
}  # fmt: skip
HELD = {"placement": "[those of the placement](files.md#placements)", "result": "[below](#result)"}
HELD |= {"plan": "[below](#plan-of-a-dry-run)"}
"""Descriptions of the fields of events that consist of another object's fields, by the event's name."""
LINKS = {
    "pcie3": "PCIe 3.0", "pcie4": "PCIe 4.0", "pcie4-no-peer": "PCIe 4.0, no peer access",
    "pcie5-no-peer": "PCIe 5.0, no peer access", "nvlink-bridge": "NVLink bridges of pairs",
    "nvlink3": "NVLink, 600 GB/s", "nvlink3-400": "NVLink, 400 GB/s", "nvlink4": "NVLink, 900 GB/s",
    "nvlink5": "NVLink, 1,800 GB/s", "infinity-fabric": "Infinity Fabric, 128 GB/s to each",
    "ethernet-100g": "100 Gbit/s", "infiniband-hdr": "200 Gbit/s per GPU",
    "infiniband-ndr": "400 Gbit/s per GPU",
}  # fmt: skip
"""Names of links.toml as people write them."""


def filled(page: str) -> str:
    """Return a page with every marked table written anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell}".replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def options() -> str:
    """Return a section for each command, with a table of its options."""
    entries = {**COMMANDS, "trace summary": SUMMARY}
    return "\n\n".join(section(name, entry) for name, entry in entries.items())


def section(name: str, entry: Entry) -> str:
    """Return one command's section of the page of options."""
    about = inspect.getdoc(entry.options) or ""
    rows = [(flags(field), help_of(field)) for field in entry.fields().values()]
    return f"## paradit {name}\n\n{about}\n\n{table(('option', 'meaning'), rows)}"


def flags(field: Declared) -> str:
    """Return an option's flags and value as they are written on the command line."""
    option, name = field.option, field.name.replace("_", "-")
    if option.argument:
        return f"`{option.metavar}`"
    names = [f"--{name}", *([f"--no-{name}"] if option.negatable else [])]
    written = ", ".join(f"`{one}`" for one in ([option.short] if option.short else []) + names)
    values = " or ".join(f"`{value}`" for value in option.metavar.split("|") if value)
    return f"{written} {values}".rstrip()


def help_of(field: Declared) -> str:
    """Return an option's help text with its default."""
    text = field.option.help_text
    if field.default in (None, MISSING, False) or "[default" in text:
        return text
    return f"{text} [default: {field.default}]"


def events() -> str:
    """Return a table of all events: their names and fields in JSON, their classes, and when they are sent."""
    reporter, rows = JsonReporter(), []
    for kind in EVENTS.values():
        with contextlib.redirect_stderr(io.StringIO()):  # an event without a JSON line may be printed there
            reported = reporter._fields(kind(**sample(kind)))  # type: ignore[arg-type]
        name, content = reported or ("", {})
        names = ", ".join([*([HELD[name]] if name in HELD else []), *(f"`{field}`" for field in content)])
        rows.append((f"`{name}`" if name else "none", names, f"`{kind.__name__}`", when(kind)))
    return table(("event", "fields", "class", "sent"), rows)


def sample(kind: type[Event]) -> dict[str, Any]:
    """Return a value for each field of an event class; objects are empty."""
    plain: dict[object, Any] = {int: 1, float: 1.0, str: ""}
    found = {}
    for name, hint in get_type_hints(kind).items():
        origin = get_origin(plain_type(hint))
        found[name] = plain[plain_type(hint)] if origin is None else origin()
    return found


def when(kind: type[Event]) -> str:
    """Return an event class's docstring, without the words "Event sent"."""
    text = one_line(inspect.getdoc(kind) or "").removeprefix("Event sent ")
    return text[:1].upper() + text[1:]


def event_fields() -> str:
    """Return a table of the fields of each event class, except those that all of them have."""
    rows = [
        (f"`{kind.__name__}`", f"`{name}`", words(hint), meanings(kind)[name])
        for kind in EVENTS.values()
        for name, hint in get_type_hints(kind).items()
        if name not in get_type_hints(Event)
    ]
    return table(("class", "field", "type", "meaning"), rows)


def placement() -> str:
    """Return a table of the fields of a placement file, each with its help text or its docstring."""
    about, rows = meanings(Placement), []
    for one in placement_fields().values():
        text = one.option.help_text
        stated = DEFAULT.search(text)
        default = f"`{json.dumps(one.default)}`"
        if one.default is None and stated:
            default = stated[1]
        rows.append((f"`{one.name}`", words(one.hint), default, DEFAULT.sub("", text) or about[one.name]))
    return as_json(table(("field", "type", "default", "meaning"), rows))


def model_defaults() -> str:
    """Return a table of the fields of a model folder's `paradit.json`."""
    about = meanings(Defaults)
    rows = [("`name`", "text", "", "Name of the model, as results and metadata show it.")]
    for one in declared(Defaults).values():
        rows.append((f"`{one.name}`", words(one.hint), limits(one), about[one.name]))
    return as_json(table(("field", "type", "limits", "meaning"), rows))


def limits(field: Declared) -> str:
    """Return the smallest and largest value that a field may have."""
    least, most = field.option.least, field.option.most
    lower = "" if least is None else "above 0" if least < 1e-300 else f"from {least:,g}"
    return lower + ("" if most is None else f" to {most:,}")


def as_json(text: str) -> str:
    """Return a text about Python's values with None as JSON writes it."""
    return re.sub(r"\bNone\b", "null", text)


def figures(of: type, file: str) -> str:
    """Return a table of the figures of `of`, as the comment at the top of the TOML file describes them."""
    head = (Path(hardware.__file__).parent / file).read_text(encoding="utf-8").split("\n\n")[0]
    about = dict(re.findall(r"^#   (\w+)  +(.*(?:\n#      +.*)*)", head, re.MULTILINE))
    hidden = ("name", "source", "efficiency")
    rows = [
        (f"`{name}`", one_line(re.sub(r"\n#", " ", about[name])))
        for name in (one.name for one in fields(of))
        if name not in hidden
    ]
    return table(("figure", "meaning"), rows)


def gpus() -> str:
    """Return a table of the GPUs of devices.toml."""
    content = tomllib.loads((Path(hardware.__file__).parent / "devices.toml").read_text(encoding="utf-8"))
    defaults = content.pop("defaults")
    rows = []
    for name, own in sorted(content.items()):
        device = {**defaults, **own}
        dense = " / ".join(
            f"{device['dense'][dtype] / 1e12:,.4g}" if dtype in device["dense"] else "none"
            for dtype in ("bf16", "fp32")
        )
        within = "; ".join(LINKS[device[key]] for key in ("link", "pair") if key in device)
        memory = f"{device['memory'] / 1e9:.3g}"
        rows.append(
            (
                name,
                dense,
                f"{device['memory_bandwidth'] / 1e9:,.0f}",
                memory,
                within,
                LINKS[device["network"]],
            )
        )
    head = ("name", "TFLOPS, bf16 / fp32", "GB/s", "memory, GB", "between GPUs", "between machines")
    return table(head, rows)


def meanings(cls: type) -> dict[str, str]:
    """Return the docstrings of a class's fields, by name, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            match field, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = one_line(text)
    return found


def words(hint: object) -> str:
    """Return a type in words, such as "list of whole numbers"."""
    inner, origin = get_args(hint), get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(words(one) for one in inner)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin is tuple and inner[-1] is not ...:
        return f"{len(inner)} {plural(words(inner[0]))}"
    if origin in (tuple, list):
        return f"list of {plural(words(inner[0]))}"
    return WORDS.get(hint, "object")


def plural(type_words: str) -> str:
    return type_words.replace("list", "lists", 1) if type_words.startswith("list") else f"{type_words}s"


def plain_type(hint: object) -> object:
    """Return a type without None."""
    return next(iter(get_args(hint))) if get_origin(hint) in (Union, UnionType) else hint


def one_line(text: str) -> str:
    return " ".join(text.split())


TABLES: dict[str, Callable[[], str]] = {
    "options": options,
    "events": events,
    "event-fields": event_fields,
    "placement": placement,
    "model-defaults": model_defaults,
    "device": lambda: figures(Device, "devices.toml"),
    "link": lambda: figures(Link, "links.toml"),
    "gpus": gpus,
}

if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
