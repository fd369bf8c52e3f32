"""Declarations of options: each once, in the frozen dataclass it belongs to, with type, limits and help.

chunks: Annotated[int | None, Option(help="Parts in which data travel.", metavar="N", least=1)] = None

Fields of such classes are read strictly, wherever their values come from: `decode` reads plain values, as
JSON and TOML have them, and `check` checks an object that Python code has made.
"""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from functools import wraps
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
"""Plural words for types in error messages, such as `whole numbers`; `WORDS` has the singular ones."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """Annotation of a dataclass field that makes it an option: help text, flags and limits."""

    help: str | Callable[[], str] = ""
    """Help text that says what the option does, or a function that returns it when help is shown."""
    metavar: str = ""
    short: str = ""
    """One-letter flag on the command line, such as `-o`."""
    argument: bool = False
    """Whether the option is a positional argument on the command line, without a flag."""
    negatable: bool = False
    """Whether the command line also has `--no-NAME`, which sets the option to false."""
    also: tuple[str, ...] = ()
    """Other words that a user may try for this option; the error for such a word suggests the right flag."""
    formerly: tuple[str, ...] = ()
    """Names that the option had in the previous minor version; they still work, with a warning."""
    least: float | None = None
    """Smallest value allowed for a number, or for each number in a list; None: no limit. See `ABOVE_ZERO`."""
    most: float | None = None
    fixed: bool = False
    """Whether the option has no other valid value than its default."""

    @property
    def help_text(self) -> str:
        """Help text of the option as a string, whether it was declared as a string or as a function."""
        return self.help if isinstance(self.help, str) else self.help()


class RenamedWarning(DeprecationWarning):
    """Warning about the use of an option's old name, which the next minor version will not know."""


ABOVE_ZERO = 5e-324
"""Limit for `Option.least` that allows any number above 0, but not 0 itself."""
PLAIN = Option()
"""Empty `Option`, used for a field that is declared without one."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """Declaration of a dataclass field: its name, type, default and `Option`."""

    name: str
    hint: object
    """Type of the field, without its `Option`; a union with None if the value may be left open."""
    default: object
    """Default value of the field; `MISSING` if a value must be given."""
    option: Option = PLAIN

    @classmethod
    def of(cls, name: str, hint: object, default: object = MISSING) -> Declared:
        """Return a declaration for a value that is not a field of a dataclass."""
        return cls(name=name, hint=hint, default=default)

    @property
    def kind(self) -> object:
        """Type of the declared field, with None taken out of the union."""
        parts = [part for part in _parts(self.hint) if part is not NoneType]
        return parts[0] if len(parts) == 1 else self.hint

    @property
    def among(self) -> tuple[object, ...]:
        """All values that the declared field allows, if it is a `Literal`; else empty."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def read(self, value: object) -> object:
        """Return a plain value converted to the field's type. Raises InputError if it is not valid."""
        if value is None and NoneType in _parts(self.hint):
            return None
        found: object
        if self.kind in (int, float):
            found = self._number(self.kind, value)
        elif self.kind is str and isinstance(value, str):
            found = value  # may be a file name that is not UTF-8
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
        # `amount` refuses 0 and negative numbers, so those that are allowed are returned here.
        if value == 0 and least == 0:
            return 0.0
        if least is None and value <= 0 and math.isfinite(value):
            return float(value)
        return amount(self.name, value, least=0.0 if least in (None, ABOVE_ZERO) else least, most=most)


_FIELDS: dict[type, Mapping[str, Declared]] = {}
_OPTIONS: dict[type, Mapping[str, Declared]] = {}


def all_fields(cls: type) -> Mapping[str, Declared]:
    """Return all fields of a dataclass by name, in their order."""
    if cls not in _FIELDS:
        hints = get_type_hints(cls, include_extras=True)
        _FIELDS[cls] = {field.name: _declared(field, hints[field.name]) for field in fields(cls)}
    return _FIELDS[cls]


def declared(cls: type) -> Mapping[str, Declared]:
    """Return the fields of a dataclass that are annotated with an `Option`, by name, in their order."""
    if cls not in _OPTIONS:
        _OPTIONS[cls] = {name: field for name, field in all_fields(cls).items() if field.option is not PLAIN}
    return _OPTIONS[cls]


def _declared(field: Field[object], hint: object) -> Declared:
    kind, *more = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    option = next((one for one in more if isinstance(one, Option)), PLAIN)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Declared(name=field.name, hint=kind, default=default, option=option)


def check(made: object) -> None:
    """Check the annotated fields of an object, and convert each to its type in place. Raises InputError."""
    for name, field in declared(type(made)).items():
        object.__setattr__(made, name, field.read(getattr(made, name)))  # works if the class is frozen, too


def decode(cls: type[T], data: object, where: str = "") -> T:
    """Return an instance of a dataclass made of plain values, after checking each field.

    where: source of the values, such as a file's path, for error messages. Raises InputError, in one line,
    for a wrong type, a number beyond its limits, an unknown name or a missing one.
    """
    known: type = cls
    with named(where):
        return cls(**read_all(all_fields(known), data))


def decode_known(cls: type[T], data: Mapping[str, object], where: str = "") -> T:
    """Return an instance of a dataclass whose fields are set from plain values by name.

    Names that are not fields of the dataclass are ignored; `decode`, which this calls, refuses them.
    """
    known: type = cls
    return decode(cls, {name: value for name, value in data.items() if name in all_fields(known)}, where)


def read_all(known: Mapping[str, Declared], data: object) -> dict[str, Any]:
    """Return the values of all fields, converted to their types. Raises InputError as `decode` does.

    data: plain values by name. known: all fields by name; those without a default must be in `data`.
    """
    values = read_values(known, data)
    for name, field in known.items():
        if field.default is MISSING and name not in values:
            raise InputError(f"{name} is missing: it must be {_wanted(field.kind)}")
    return values


def read_values(known: Mapping[str, Declared], data: object) -> dict[str, Any]:
    """Return the values of the fields that `data` has, converted to their types. Raises InputError.

    data: plain values by name. known: fields by name; `data` may leave out any of them.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"the value must be an object with {_some(known)}, got {typed(data)}")
    data = with_new_names(data, former_names(known.values()))
    for name in data:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"unknown field {shown(name)}{hint}; known fields: {_some(known)}")
    return {name: known[name].read(value) for name, value in data.items()}


def former_names(known: Iterable[Declared]) -> dict[str, str]:
    """Return a mapping from each option's former names to its present name."""
    return {former: field.name for field in known for former in field.option.formerly}


def takes_former_names(cls: type[T]) -> type[T]:
    """Decorate a dataclass so that its constructor also takes former names of options, with a warning."""
    construct = cls.__init__

    @wraps(construct)
    def construct_renamed(self: T, *args: object, **values: object) -> None:
        construct(self, *args, **with_new_names(values, former_names(declared(cls).values())))

    cls.__init__ = construct_renamed  # type: ignore[method-assign, assignment]
    return cls


def with_new_names(data: Mapping[str, object], renamed: Mapping[str, str]) -> Mapping[str, object]:
    """Return the values with former option names replaced by present ones, and warn of each.

    renamed: mapping from each former name to the present one. Raises InputError if a value is given under
    both names.
    """
    for former in [name for name in data if name in renamed]:
        if (name := renamed[former]) in data:
            raise InputError(f"{former} is the old name of {name}: give only {name}")
        warn_renamed(former, name)
        data = {name if other == former else other: value for other, value in data.items()}
    return data


def warn_renamed(former: str, name: str) -> None:
    """Warn, in one line, that an option's former name will stop working."""
    said = f"{former} is now called {name}; the next minor version will not accept the old name"
    warnings.warn_explicit(said, RenamedWarning, "paradit", 0)


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a text holds. Raises InputError.

    what: words for the source of the text, such as a file, for error messages.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{what} must hold a JSON object, got {typed(found)}")
    return found


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put `where`, the source that is being read, before the text of an InputError from the `with` block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def to_argv(values: Mapping[str, object]) -> list[str]:
    """Return options, given by name, as words of a command line.

    An option that is None is left out; one with a list of values is repeated for each.
    """
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (f"--{flag}", str(one))]
        elif value is not None:
            words += [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]
    return words


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of a message that suggests the nearest known name; empty if none is near."""
    # Cut off, because a file may have a very long name, and difflib takes quadratic time.
    close = difflib.get_close_matches(str(name)[:100], known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _some(names: Iterable[str]) -> str:
    return ", ".join(names)


def _path(kind: type, value: object) -> object:
    """Convert a text to a Path if msgspec wants a Path; return any other value unchanged.

    This is msgspec's `dec_hook`; msgspec then checks the type of the result.
    """
    return Path(value) if kind is Path and isinstance(value, str) else value


def _parts(kind: object) -> tuple[object, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _numbers(value: object) -> Iterator[int | float]:
    """Yield all numbers in a value, at any depth of tuples and mappings."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _wanted(kind: object) -> str:
    """Return the words for a type in an error message, such as `a whole number` for int."""
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
