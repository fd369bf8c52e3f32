"""Options, each declared once: in the frozen dataclass that it belongs to, with its type, limits and help.

chunks: Annotated[int | None, Option(help="Parts in which data travel.", metavar="N", least=1)] = None
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType
from typing import Annotated, Literal, TypeVar, get_args, get_origin, get_type_hints

from paradit.config.errors import InputError
from paradit.config.limits import shown, typed, whole
from paradit.config.values import Value

T = TypeVar("T")

KINDS = {bool: "true or false", int: "a whole number", str: "a text"}
"""Types that an option may have, and how a message calls their values."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """What there is to say of a field besides its type and its default."""

    help: str
    metavar: str
    least: int | None = None
    most: int | None = None


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A field that is an option."""

    name: str
    kind: type
    """One of `KINDS`."""
    among: tuple[Value, ...]
    """All values that it may have; empty: any of its kind."""
    default: Value | None
    """None: not said."""
    option: Option

    def check(self, value: object) -> None:
        """Refuse a value that it cannot have. Raises InputError."""
        if self.among:
            if value not in self.among:
                raise InputError(
                    f"{self.name} must be {' or '.join(map(str, self.among))}, got {shown(value)}"
                )
        elif self.kind is int:
            least, most = self.option.least, self.option.most
            whole(
                self.name,
                value,
                least=-math.inf if least is None else least,
                most=math.inf if most is None else most,
            )
        elif type(value) is not self.kind:
            raise InputError(f"{self.name} must be {KINDS[self.kind]}, got {typed(value)}")


@cache
def declared(cls: type) -> Mapping[str, Declared]:
    """The options of a dataclass, in their order."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for field in fields(cls):
        annotated, option = get_args(hints[field.name])
        assert get_origin(hints[field.name]) is Annotated
        assert isinstance(option, Option)
        kinds = [kind for kind in get_args(annotated) or (annotated,) if kind is not NoneType]
        among = get_args(annotated) if get_origin(annotated) is Literal else ()
        found[field.name] = Declared(
            name=field.name,
            kind=type(among[0]) if among else kinds[0],
            among=among,
            default=None if field.default is MISSING else field.default,
            option=option,
        )
    return found


def read(cls: type[T], values: Mapping[str, object]) -> T:
    """The options that `values` say, the others at their defaults. Raises InputError for a wrong value."""
    options: type = cls
    known = declared(options)
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{name} is not one of the options {', '.join(known)}")
        known[name].check(value)
    return cls(**values)
