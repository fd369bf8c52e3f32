"""Registries of attention forms, methods, launchers and model families by name: built-in ones and plug-ins.

They are imported when they are looked up. Another package adds one by an entry point with its name and the
value "module:object":

    [project.entry-points."paradit.attention"]
    zigzag = "my_package.zigzag:ZIGZAG"
"""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Mapping
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from typing import Generic, TypeVar, cast

from paradit.config.errors import InputError
from paradit.config.limits import shown

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

SWITCH = "PARADIT_PLUGINS"
"""Environment variable that leaves out all plug-ins if it is `off`."""
PREFIX = "paradit."
GROUPS = ("paradit.attention", "paradit.launchers", "paradit.methods", "paradit.models")


class PluginWarning(UserWarning):
    """Warning that a plug-in cannot be used and is left out, and why."""


def plugins() -> list[str]:
    """Return texts that name all installed plug-ins and their packages' versions; imports none of them.

    Ranks compare these texts, to check that all have the same plug-ins.
    """
    if _left_out():
        return []
    return sorted(
        f"{group} {point.name}" + (f" of {point.dist.name} {point.dist.version}" if point.dist else "")
        for group in GROUPS
        for point in _points(group)
    )


class Registry(Generic[T]):
    """Collection of things of one kind, such as attention forms or methods, found by their names."""

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        """Create a registry of built-in things and of the plug-ins of an entry point group.

        kind: word for such a thing in error messages, such as `method`. group: name of the entry point group.
        builtin: import paths "module:object" of the built-in things, by name.
        """
        self.kind, self._group, self._builtin = kind, group, dict(builtin)
        self._found: dict[str, T] = {}
        self._failed: set[str] = set()
        """Names of plug-ins whose import has failed, and for which a warning was issued."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all things in the registry, built-in ones first, without importing anything."""
        return (*self._builtin, *self._plugins)

    def find(self, name: str) -> T:
        """Import the registered thing with this name and return it.

        Raises InputError, which suggests the nearest name, if there is none.
        """
        if not isinstance(name, str):  # a name from a file or a program may be of any type
            raise InputError(self._unknown(name))
        if name not in self._found:
            self._found[name] = self._import(name)
        return self._found[name]

    def all(self) -> list[T]:
        """Return all registered things that can be imported, in the order of `names`.

        Warns once of each plug-in whose import fails.
        """
        found = []
        for name in self.names():
            try:
                found.append(self.find(name))
            except InputError as error:  # a plug-in that fails is warned of once, and left out
                if name not in self._failed:
                    _warn(str(error))
                self._failed.add(name)
        return found

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        if _left_out():
            _LOG.info("plug-ins of %s are left out: %s=off", self._group, SWITCH)
            return {}
        found: dict[str, EntryPoint] = {}
        for point in sorted(_points(self._group), key=lambda point: point.name):
            if point.name in self._builtin or point.name in found:
                other = "is built in" if point.name in self._builtin else "comes from two packages"
                _warn(f"the {self.kind} {point.name!r} of {point.value} is left out: the name {other}")
            else:
                found[point.name] = point
        return found

    def _import(self, name: str) -> T:
        if name in self._builtin:
            return cast(T, imported(self._builtin[name]))
        if name in self._plugins:
            try:
                _LOG.info("the %s %r is the plug-in %s", self.kind, name, self._plugins[name].value)
                return cast(T, self._plugins[name].load())
            except Exception as error:  # another package's module may raise anything
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(
                    f"the {self.kind} {name!r}, a plug-in, cannot be imported: {reason}"
                ) from error
        raise InputError(self._unknown(name))

    def _unknown(self, name: object) -> str:
        known = ", ".join(self.names())
        close = difflib.get_close_matches(shown(name), self.names(), n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        return f"{self.kind} must be one of {known}, got {shown(name)}{hint}"


def imported(name: str) -> object:
    """Import and return the object that a text "module:name" refers to; the name may have dots."""
    module, _, path = name.partition(":")
    return attrgetter(path)(import_module(module))


@cache
def _all_points() -> list[EntryPoint]:
    """Return the entry points by which installed packages add plug-ins; read once per process."""
    found = entry_points()
    return [p for group in found.groups if group.startswith(PREFIX) for p in found.select(group=group)]


def _points(group: str) -> list[EntryPoint]:
    return [point for point in _all_points() if point.group == group]


def _left_out() -> bool:
    return os.environ.get(SWITCH, "").lower() == "off"


def _warn(message: str) -> None:
    """Issue a one-line `PluginWarning`, except in processes started as ranks, whose parent has warned."""
    from multiprocessing import parent_process

    if parent_process() is None:
        warnings.warn_explicit(message, PluginWarning, "paradit", 0)
