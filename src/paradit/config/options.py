"""Options, each declared once: in the frozen dataclass that it belongs to, with its type, limits and help.

chunks: Annotated[int | None, Option(help="Parts in which data travel.", metavar="N", least=1)] = None

Fields of such classes are read strictly, wherever their values come from: `decode` reads plain values, as
JSON and TOML have them, and `check` judges an object that Python code has made.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from paradit.config.errors import InputError
from paradit.config.limits import amount, shown, typed, whole

T = TypeVar("T")

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text"}
PLURALS = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}
"""Types, as messages call their values."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """What there is to say of a field besides its type and its default."""

    help: str | Callable[[], str] = ""
    """What it does; called for when it is shown, if other parts of the program say it."""
    metavar: str = ""
    short: str = ""
    """One letter's flag on the command line, such as `-o`."""
    argument: bool = False
    """Whether it is one on the command line by its place, without a name."""
    negatable: bool = False
    """Whether `--no-NAME` on the command line says false."""
    also: tuple[str, ...] = ()
    """Other words that a user may mean it by."""
    formerly: tuple[str, ...] = ()
    """Names that it had in the minor version before: they still work, with a warning."""
    least: float | None = None
    """Least that a number may be, or each in a list; None: any. See `ABOVE_ZERO`."""
    most: float | None = None
    fixed: bool = False
    """Whether nothing but the default is supported."""

    @property
    def told(self) -> str:
        """The help, as a text."""
        return self.help if isinstance(self.help, str) else self.help()


class RenamedWarning(DeprecationWarning):
    """A name was used that the next minor version will not know."""


ABOVE_ZERO = 5e-324
"""`least` of a number that may be as small as it likes, but not zero."""
PLAIN = Option()
"""The option of a field that has none."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A field of a dataclass."""

    name: str
    hint: object
    """The type without the option; a union with None is a field that may be left open."""
    default: object
    """`MISSING` if the field must be given."""
    option: Option = PLAIN

    @classmethod
    def of(cls, name: str, hint: object, default: object = MISSING) -> Declared:
        """A field that stands in no dataclass."""
        return cls(name=name, hint=hint, default=default)

    @property
    def kind(self) -> object:
        """The type without None."""
        parts = [part for part in _parts(self.hint) if part is not NoneType]
        return parts[0] if len(parts) == 1 else self.hint

    @property
    def among(self) -> tuple[object, ...]:
        """All values that the field may have; empty: any of its type."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def read(self, value: object) -> object:
        """Return a plain value as the field's type has it. Raises InputError."""
        if value is None and NoneType in _parts(self.hint):
            return None
        found: object
        if self.kind in (int, float):
            found = self._number(self.kind, value)
        elif self.kind is str and isinstance(value, str):
            found = value  # also a file's name that is not UTF-8
        else:
            plain = str(value) if isinstance(value, Path) else value
            try:
                found = msgspec.convert(plain, self.hint, dec_hook=_path)
            except (msgspec.ValidationError, UnicodeError, RecursionError):
                got = shown(value) if self.among else typed(value)
                raise InputError(f"{self.name} must be {_wanted(self.kind)}, got {got}") from None
            for number in _numbers(found) if self.option is not PLAIN else ():
                self._number(type(number), number)
        if isinstance(found, str | Path) and "\0" in str(found):
            raise InputError(f"{self.name} must be a text without NUL, got {shown(found)}")
        if self.option.fixed and found != self.default:
            raise InputError(f"{self.name} {shown(found)} is not supported: only {shown(self.default)} is")
        return found

    def _number(self, kind: type, value: object) -> int | float:
        least, most = self.option.least, self.option.most
        most = math.inf if most is None else most
        if kind is int:
            return whole(self.name, value, least=-math.inf if least is None else least, most=most)
        if type(value) is bool or not isinstance(value, Real):
            raise InputError(f"{self.name} must be a number, got {typed(value)}")
        if value == 0 and least == 0:
            return 0.0
        if least is None and value <= 0 and math.isfinite(value):
            return float(value)
        return amount(self.name, value, least=0.0 if least in (None, ABOVE_ZERO) else least, most=most)


_FIELDS: dict[type, Mapping[str, Declared]] = {}
_OPTIONS: dict[type, Mapping[str, Declared]] = {}


def all_fields(cls: type) -> Mapping[str, Declared]:
    """The fields of a dataclass, in their order."""
    if cls not in _FIELDS:
        hints = get_type_hints(cls, include_extras=True)
        _FIELDS[cls] = {field.name: _declared(field, hints[field.name]) for field in fields(cls)}
    return _FIELDS[cls]


def declared(cls: type) -> Mapping[str, Declared]:
    """The fields of a dataclass that are declared with an `Option`, in their order."""
    if cls not in _OPTIONS:
        _OPTIONS[cls] = {name: field for name, field in all_fields(cls).items() if field.option is not PLAIN}
    return _OPTIONS[cls]


def _declared(field: Field[object], hint: object) -> Declared:
    kind, *more = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    option = next((one for one in more if isinstance(one, Option)), PLAIN)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Declared(name=field.name, hint=kind, default=default, option=option)


def check(made: object) -> None:
    """Judge an object's declared fields, and set them as their types have them. Raises InputError."""
    for name, field in declared(type(made)).items():
        object.__setattr__(made, name, field.read(getattr(made, name)))


def decode(cls: type[T], data: object, where: str = "") -> T:
    """Read plain values into a dataclass.

    where: what they come from, such as a file's path, for messages. Raises InputError, in one line, for a
    wrong type, a number beyond its limits, a name that is not known, and one that is missing.
    """
    known: type = cls
    with named(where):
        return cls(**read_all(all_fields(known), data))


def decode_known(cls: type[T], data: Mapping[str, object], where: str = "") -> T:
    """Read what a dataclass knows of plain values, whatever else is among them; else as `decode`."""
    known: type = cls
    return decode(cls, {name: value for name, value in data.items() if name in all_fields(known)}, where)


def read_all(known: Mapping[str, Declared], data: object) -> dict[str, Any]:
    """Read the plain values of all fields that have no default, and others. Raises InputError."""
    values = read_values(known, data)
    for name, field in known.items():
        if field.default is MISSING and name not in values:
            raise InputError(f"{name} is missing: it must be {_wanted(field.kind)}")
    return values


def read_values(known: Mapping[str, Declared], data: object) -> dict[str, Any]:
    """Read the plain values of some fields. Raises InputError as `decode` does."""
    if not isinstance(data, Mapping):
        raise InputError(f"an object with {_some(known)} is wanted, got {typed(data)}")
    data = with_new_names(data, former_names(known.values()))
    for name in data:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"the field {shown(name)} is not known{hint}; known are {_some(known)}")
    return {name: known[name].read(value) for name, value in data.items()}


def former_names(known: Iterable[Declared]) -> dict[str, str]:
    """Return the present name of each option by its former ones."""
    return {former: field.name for field in known for former in field.option.formerly}


def with_new_names(data: Mapping[str, object], renamed: Mapping[str, str]) -> Mapping[str, object]:
    """Put present names in the place of former ones, and warn of these. Raises InputError for both."""
    for former in [name for name in data if name in renamed]:
        if (name := renamed[former]) in data:
            raise InputError(f"{former} is the former name of {name}: give one of them")
        warn_renamed(former, name)
        data = {name if other == former else other: value for other, value in data.items()}
    return data


def warn_renamed(former: str, name: str) -> None:
    """Warn, in one line, of a name that will go."""
    said = f"{former} is now {name}: the former name goes with the next minor version"
    warnings.warn_explicit(said, RenamedWarning, "paradit", 0)


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Read a JSON object. what: the file, say, for messages. Raises InputError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{what} must hold a JSON object, got {typed(found)}")
    return found


@contextmanager
def named(where: str) -> Iterator[None]:
    """Begin the message of an InputError with what was being read."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def to_argv(values: Mapping[str, object]) -> list[str]:
    """Return options, by name, as words of a command line; what is None is not said."""
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return a question after the nearest of the known names, if there is one."""
    close = difflib.get_close_matches(str(name)[:100], known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _some(names: Iterable[str]) -> str:
    return ", ".join(names)


def _path(kind: type, value: object) -> object:
    """Make what msgspec does not know; of what is returned it checks the type."""
    return Path(value) if kind is Path and isinstance(value, str) else value


def _parts(kind: object) -> tuple[object, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _numbers(value: object) -> Iterator[int | float]:
    """All numbers in a value, at any depth."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _wanted(kind: object) -> str:
    """What a message asks for."""
    parts, among = _parts(kind), get_args(kind)
    if len(parts) > 1:
        return " or ".join(map(_wanted, parts))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, among))
    if get_origin(kind) is tuple:
        number = "" if among[-1] is ... else f"{len(among)} "
        return f"a list of {number}{PLURALS.get(among[0], 'values')}"
    if get_origin(kind) is Mapping:
        return f"an object of {PLURALS.get(among[1], 'values')}"
    return WORDS.get(kind) or f"a {kind.__name__}" if isinstance(kind, type) else "a value"
