"""Write docs/reference/options.md: every option of every command, from the classes that declare them.

Run it as `python benchmarks/options_page.py`.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING
from pathlib import Path

from paradit.cli.commands.command import Entry
from paradit.cli.commands.trace_options import SUMMARY
from paradit.cli.main import COMMANDS
from paradit.config.options import Declared

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
HEAD = """# Options

Every option of every command, as `--help` says it; `benchmarks/options_page.py` writes this page. The
[guides](../guides/first_video.md) show what they are for; [notes on `paradit generate`](generate.md)
say more.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    entries = {**COMMANDS, "trace summary": SUMMARY}
    return "\n".join([HEAD, *(section(name, entry) for name, entry in entries.items())])


def section(name: str, entry: Entry) -> str:
    """Return one command's section of the page."""
    told = inspect.getdoc(entry.options) or ""
    rows = [f"| {flag(field)} | {text(field)} |" for field in entry.fields().values()]
    return "\n".join([f"## paradit {name}", "", told, "", "| option | meaning |", "|---|---|", *rows, ""])


def flag(field: Declared) -> str:
    """Return an option's flags and value as they are written on the command line."""
    option, name = field.option, field.name.replace("_", "-")
    if option.argument:
        return f"`{option.metavar}`"
    flags = [f"--{name}", *([f"--no-{name}"] if option.negatable else [])]
    written = ", ".join(f"`{one}`" for one in ([option.short] if option.short else []) + flags)
    return f"{written} `{option.metavar}`".replace("|", "\\|") if option.metavar else written


def text(field: Declared) -> str:
    """Return an option's meaning and default."""
    default = field.default
    if default in (None, MISSING, False) or "[default" in field.option.help_text:
        return field.option.help_text.replace("|", "\\|")
    return f"{field.option.help_text} [default: {default}]".replace("|", "\\|")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
