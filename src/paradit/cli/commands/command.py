"""What all commands do with their arguments before they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import typer
from typer import TyperException
from typer.core import TyperCommand
from typer.models import OptionInfo

from paradit.attention import registry as forms
from paradit.config.methods import registry as methods
from paradit.files import named

NAMES = ("gpus", "model", "output", "placement")
"""Texts that may name a file, in which `~` is the user's home; other files are options of type Path."""


class Command(TyperCommand):
    """A command whose files may begin with `~`, also if the shell leaves that as it is (`--output=~/a`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, list(args))
        except TyperException as error:
            if self.name == "generate" and (prompt := _dashed_prompt(args)):
                error.message += f" (a prompt that begins with a dash comes last: -- {prompt!r})"
            raise
        for name, value in ctx.params.items():
            if isinstance(value, Path):
                ctx.params[name] = named(name, value)
            elif name in NAMES and isinstance(value, str):
                ctx.params[name] = os.path.expanduser(value)  # noqa: PTH111 (never raises)
        return rest


def _dashed_prompt(args: list[str]) -> str | None:
    """An argument that is taken for an option, but reads like a prompt."""
    if "--" in args:
        return None
    return next((arg for arg in args if arg.startswith("-") and " " in arg and "=" not in arg), None)


def declared_option(name: str) -> OptionInfo:
    """Return an option that only some form of attention, or some method, has."""
    of_methods = {**methods.declared_options(), **methods.declared_placement_options()}
    option = {**forms.declared_options(), **of_methods}[name].option
    return cast(OptionInfo, typer.Option(help=option.help, metavar=option.metavar))
