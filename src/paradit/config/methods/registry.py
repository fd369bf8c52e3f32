"""Registry of the denoising methods by name, and the options that only some of them have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paradit.config.errors import InputError
from paradit.config.options import Declared, declared
from paradit.config.plugins import Registry
from paradit.config.values import Value, Values


@dataclass(frozen=True)
class NoOptions:
    """Empty set of options, for a method that has none of its own."""


class Declares:
    """Base class of denoising methods with the attributes that each declares: name, help text and options."""

    name: str
    help: str
    """Short description of what the denoising method does, as `--help` shows it."""
    default_for: str | None = None
    """Description, for `--help`, of the videos for which this denoising method is the default.

    None if it is the default for no video.
    """
    options: type = NoOptions
    """Frozen dataclass (`paradit.config.options`) of this denoising method's own request options."""
    placement_options: type = NoOptions
    """Frozen dataclass (`paradit.config.options`) of this denoising method's own placement options."""


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
"""Registry of denoising methods: the whole video at once, or in frame blocks
(docs/development/long_videos.md)."""


def declared_options() -> dict[str, Declared]:
    """Return the request options that only some denoising methods have, by name."""
    return {name: one for method in METHODS.all() for name, one in declared(method.options).items()}


def declared_placement_options() -> dict[str, Declared]:
    """Return the placement options that only some denoising methods have, by name."""
    return {name: one for method in METHODS.all() for name, one in declared(method.placement_options).items()}


def checked_placement_options(options: Mapping[str, Value | None]) -> Values:
    """Return the placement options that were given, after checking them.

    Raises InputError for an unknown option or a wrong value.
    """
    given, known = Values(options), declared_placement_options()
    for name, value in given.items():
        if name not in known:
            raise InputError(f"no method has the option {name} for placements")
        known[name].read(value)
    return given


def methods_with(option: str) -> list[str]:
    """Return the names of the denoising methods that have a request option with this name."""
    return [method.name for method in METHODS.all() if option in declared(method.options)]


def help_text() -> str:
    """Return the text that `--help` shows for the option `--method`."""
    methods = METHODS.all()
    told = "; ".join(f"{method.name}: {method.help}" for method in methods)
    usual = [f"{method.name}{method.default_for}" for method in methods if method.default_for is not None]
    return f"How the video is denoised. {told}. [default: {', '.join(usual)}]"
