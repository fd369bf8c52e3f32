"""The methods by their names, and the options that only some of them have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paradit.config.errors import InputError
from paradit.config.options import Declared, declared
from paradit.config.registry import Registry
from paradit.config.values import Value, Values


@dataclass(frozen=True)
class NoOptions:
    """For a method that has none."""


class Declares:
    """What a method says of itself before anything is asked of it."""

    name: str
    help: str
    """What happens, as `--help` says it."""
    default_for: str | None = None
    """For which videos it is taken if no method is asked for, as `--help` says it; None: for none."""
    options: type = NoOptions
    """A frozen dataclass of `paradit.config.options`: the options of a request that only this method has."""
    placement_options: type = NoOptions
    """The options of a placement that only this method has."""


METHODS: Registry[Declares] = Registry(
    "method",
    "paradit.methods",
    {
        "full": "paradit.config.methods.full:FULL",
        "dualparal": "paradit.config.methods.dualparal:DUALPARAL",
        "windowed": "paradit.config.methods.windowed:WINDOWED",
        "fifo": "paradit.config.methods.fifo:FIFO",
    },
)
"""Methods of denoising: the whole video at once, or in blocks (docs/development/long_videos.md)."""


def declared_options() -> dict[str, Declared]:
    """The options of requests that only some methods have, by name."""
    return {name: one for method in METHODS.all() for name, one in declared(method.options).items()}


def declared_placement_options() -> dict[str, Declared]:
    """The options of placements that only some methods have, by name."""
    return {name: one for method in METHODS.all() for name, one in declared(method.placement_options).items()}


def checked_placement_options(options: Mapping[str, Value | None]) -> Values:
    """Return the options that are said. Raises InputError for one that no method has, or a wrong value."""
    given, known = Values(options), declared_placement_options()
    for name, value in given.items():
        if name not in known:
            raise InputError(f"no method has the option {name} for placements")
        known[name].read(value)
    return given


def methods_with(option: str) -> list[str]:
    """Names of the methods whose requests have an option."""
    return [method.name for method in METHODS.all() if option in declared(method.options)]


def help_text() -> str:
    """What `--help` says of the choice of a method."""
    methods = METHODS.all()
    told = " ".join(f"{method.name}: {method.help}." for method in methods)
    usual = [f"{method.name}{method.default_for}" for method in methods if method.default_for is not None]
    return f"{told} [default: {', and '.join(usual)}]"
