"""Numbers that a user gives, and how large they may be. Torch-free.

Every count and every amount passes through here, wherever it comes from: the command line, a file, or Python.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from paradit.errors import InputError

MAX_RANKS = 128
"""Ranks of a run, and GPUs of a plan: more than machines that share a video have."""
SHOWN = 60
"""Characters of a value that an error repeats."""


def whole(name: str, value: Any, *, most: int, least: int = 1) -> int:
    """Return a whole number within its limits. Raises InputError, naming the nearest that works."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, got {shown(value)}") from None
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {shown(number)}")
    if number > most:
        raise InputError(f"{name} is at most {most}, got {shown(number)}")
    return number


def amount(name: str, value: Any, *, most: float, least: float = 0.0, hint: str = "") -> float:
    """Return a finite number above zero and within its limits. Raises InputError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a number, got {shown(value)}") from None
    hint = f" ({hint})" if hint else ""
    if not math.isfinite(number) or number <= 0:
        raise InputError(f"{name} must be a finite number above 0, got {number:g}{hint}")
    if not least <= number <= most:
        nearest = least if number < least else most
        raise InputError(
            f"{name} must be from {least:g} to {most:g}, got {number:g}: the nearest is {nearest:g}"
        )
    return number


def digits(text: str) -> int:
    """Return the number that digits write, or one beyond any limit where they are many."""
    return int(text) if len(text) <= 18 else 10**18


def shown(value: Any) -> str:
    """Return a value as an error repeats it: on one line, and not for ever."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
