"""Construction of typer commands, each from the dataclass that declares its options."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, replace
from inspect import Parameter, Signature
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Annotated, Optional, cast

import typer
from typer import TyperException
from typer.core import TyperCommand
from typer.models import ArgumentInfo, OptionInfo

from paradit.config.errors import InputError
from paradit.config.options import Declared, declared, former_names, warn_renamed
from paradit.config.plugins import imported, plugins
from paradit.config.values import NONE, Values
from paradit.files import named
from paradit.logs import shown
from paradit.version import __version__

_LOG = logging.getLogger(__name__)

RUN = "paradit-runs/a-red-circle-20261120-185300-3fa2"
"""Example of a path to a run's folder, for help texts."""
NAMES = ("gpus", "model", "output", "placement")
"""Names of options of type str whose value may be a file name; `~` is expanded in them.

Other options for files have type Path.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class for the options of a command that also takes options which other modules declare."""

    others: Values = NONE
    """Values, by name, of options that other modules declare, such as those of plug-ins."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Declaration of a command: its options, the function that carries it out, and an example for help."""

    options: type
    """Dataclass that declares the command's options; its docstring is the help text."""
    run: str
    """Import path "module:name" of the function that carries the command out: options in, exit code out."""
    example: str
    more: Callable[[], Mapping[str, Mapping[str, Declared]]] = dict
    """Function that returns the options that other modules declare (`Options.others`), in groups.

    A group has the name of the option that it follows in help texts.
    """

    def fields(self) -> dict[str, Declared]:
        """Return all options by name, in the order in which `--help` shows them."""
        found: dict[str, Declared] = {}
        more = self.more()
        for name, field in declared(self.options).items():
            found[name] = field
            for one in more.get(name, {}).values():
                # Without a default, so that an option that was not given is None.
                plain = type(one.among[0]) if one.among else one.kind
                found[one.name] = replace(one, hint=Optional[plain], default=None)  # noqa: UP045 (not said)
        return found

    def meant(self) -> dict[str, str]:
        """Return a mapping from each word that a user may try for an option to the right flag.

        The words are the option's name and those in its `also`.
        """
        return {
            word: f"--{field.name.replace('_', '-')}"
            for field in self.fields().values()
            for word in (field.name.replace("_", "-"), *field.option.also)
            if not field.option.argument
        }

    def renamed(self) -> dict[str, str]:
        """Return a mapping from old to new names of the flags renamed since the previous minor version."""
        names = former_names(self.fields().values()).items()
        return {
            prefix + former.replace("_", "-"): prefix + name.replace("_", "-")
            for former, name in names
            for prefix in ("--", "--no-")
        }

    def function(self) -> Callable[..., int | None]:
        """Return the function that typer turns into a command; its parameters are the command's options."""

        def command(**given: object) -> int | None:
            own = {name: value for name, value in given.items() if name in declared(self.options)}
            others = {name: value for name, value in given.items() if name not in own}
            made = self.options(**own, **({"others": Values(others)} if others else {}))  # type: ignore[arg-type]
            run = cast("Callable[[object], int | None]", imported(self.run))
            with shown(bool(given.get("verbose"))):
                if _LOG.isEnabledFor(logging.INFO):
                    _LOG.info("version %s, plug-ins: %s", __version__, ", ".join(plugins()) or "none")
                return run(made)

        parameters = [_parameter(field) for field in self.fields().values()]
        # typer reads a function's parameters by `inspect.signature`, which takes this attribute as it is.
        vars(command)["__signature__"] = Signature(parameters)
        vars(command)["entry"] = self
        command.__doc__, command.__name__ = self.options.__doc__, self.run.partition(":")[2]
        return command


def _parameter(field: Declared) -> Parameter:
    option, name = field.option, field.name.replace("_", "-")
    required, metavar = field.default is MISSING, option.metavar or None
    hint = field.hint
    if field.kind is Path:  # `Command` makes the path, because "-" and "./-" are one path, but two names
        hint = str if hint is Path else Optional[str]  # noqa: UP045 (not said)
    info: ArgumentInfo | OptionInfo
    if option.argument:
        info = typer.Argument(help=option.help_text, metavar=metavar, show_default=not required)
    else:
        flag = f"--{name}/--no-{name}" if option.negatable else f"--{name}"
        flags = [flag, *([option.short] if option.short else [])]
        info = typer.Option(*flags, help=option.help_text, metavar=metavar)
    return Parameter(
        field.name,
        Parameter.KEYWORD_ONLY,
        default=Parameter.empty if required else field.default,
        annotation=Annotated[hint, info],
    )


class Command(TyperCommand):
    """Command that expands `~` in file names even if the shell does not (`--output=~/a`).

    It accepts the former names of options, with a warning, and suggests the right flag for a wrong one.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        fields, args = self._entry().fields(), _with_new_names(args, self._entry().renamed())
        _check_values(fields.values(), args)
        try:
            rest = super().parse_args(ctx, [*args])  # it empties the list
        except TyperException as error:
            if "possibilities" in vars(error):  # there is no such option
                vars(error)["possibilities"] = _nearest(vars(error)["option_name"], self._entry().meant())
            if self.name == "generate" and (prompt := _dashed_prompt(args)):
                error.message += (
                    f" (a prompt that begins with a dash must come last, after --: -- {prompt!r})"
                )
            raise
        for name, value in ctx.params.items():
            if name in fields and fields[name].kind is Path and isinstance(value, str):
                ctx.params[name] = named(name, value)
            elif name in NAMES and isinstance(value, str):
                ctx.params[name] = os.path.expanduser(value)  # noqa: PTH111 (never raises)
                if name == "output":  # other names may be words, too, such as a hub id
                    named(name, value)
        return rest

    def _entry(self) -> Entry:
        entry: Entry = inspect.unwrap(self.callback).entry  # type: ignore[arg-type]
        return entry


def _check_values(fields: Iterable[Declared], args: list[str]) -> None:
    """Refuse a command line in which an option's flag follows another one that needs a value.

    fields: declarations of the command's options. Raises InputError.
    """
    needy, flags = set(), {"--help"}
    for field in fields:
        if not field.option.argument:
            own = {f"--{field.name.replace('_', '-')}", *filter(None, [field.option.short])}
            flags |= own
            needy |= own if field.kind is not bool else set()
    for flag, value in pairwise(takewhile(lambda arg: arg != "--", args)):
        if flag in needy and value in flags:
            raise InputError(f"option {flag} needs a value, but the next word is the option {value}")


def _with_new_names(args: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Return the command line with old flags replaced by present ones, and warn of each."""
    found = []
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag in renamed and "--" not in args[:position]:  # after "--" all words are arguments
            warn_renamed(flag, renamed[flag])
            flag = renamed[flag]
        found.append(f"{flag}{equals}{value}")
    return found


def _nearest(wrong: str, meant: Mapping[str, str]) -> list[str]:
    """Return the right flag for a wrong one, by its meaning or else its spelling; empty if none is near."""
    word = wrong.lstrip("-")
    near = [word] if word in meant else difflib.get_close_matches(word, meant, n=1, cutoff=0.7)
    return [meant[one] for one in near]


def _dashed_prompt(args: list[str]) -> str | None:
    """Return an argument that begins with a dash, as options do, but has spaces, as prompts do.

    Returns None if there is no such argument.
    """
    if "--" in args:
        return None
    return next((arg for arg in args if arg.startswith("-") and " " in arg and "=" not in arg), None)
