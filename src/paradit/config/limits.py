"""Numbers that a user gives, and how large they may be. Torch-free.

Every count and every amount passes through here, wherever it comes from: the command line, a file, or Python.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import SupportsFloat, SupportsIndex

from paradit.config.errors import InputError

MAX_RANKS = 128
"""Ranks of a run, and GPUs of a plan: more than machines that share a video have."""
MAX_CHUNKS = 128
"""Parts of attention's data: more than models have heads."""
MAX_FRAMES = 10**6
"""Frames of a video that ends: hours of it."""
MAX_SECONDS = 10**7
"""Seconds that a user gives: months."""
MAX_GUIDANCE = 1000
MAX_SIDE = 2**14
"""Pixels of a picture's side."""
MAX_TILE = 2**16
"""Pixels of a decode tile's side: more than pictures have."""
MAX_PROMPTS = 10_000
MAX_PROMPT = 100_000
"""Characters of a prompt: a hundred times what text encoders read."""
MAX_FILE = 10**7
"""Bytes of a file with prompts, a placement, or a machine's figures."""
SHOWN = 60
"""Characters of a value that an error repeats."""


def whole(name: str, value: object, *, most: float = math.inf, least: float = 1, hint: str = "") -> int:
    """Return a whole number within its limits. Raises InputError; `hint` is for one above them."""
    try:
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, got {typed(value)}") from None
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {shown(number)}")
    if number > most:
        hint = f" ({hint})" if hint else ""
        raise InputError(f"{name} is at most {most}, got {shown(number)}{hint}")
    return number


def amount(name: str, value: object, *, most: float, least: float = 0.0, hint: str = "") -> float:
    """Return a finite number above zero and within its limits. Raises InputError."""
    try:
        if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat | SupportsIndex):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a number, got {typed(value)}") from None
    hint = f" ({hint})" if hint else ""
    if not math.isfinite(number) or number <= 0:
        raise InputError(f"{name} must be a finite number above 0, got {number:g}{hint}")
    if not least <= number <= most:
        nearest = least if number < least else most
        raise InputError(
            f"{name} must be from {least:.9g} to {most:.9g}, got {number:g}: the nearest is {nearest:.9g}"
        )
    return number


def one_of(name: str, value: object, choices: Collection[str]) -> None:
    """Raise InputError for what is not one of these words."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def digits(text: str) -> int:
    """Return the number that digits write, or one beyond any limit where they are many."""
    return int(text) if len(text) <= 18 else 10**18


def shown(value: object) -> str:
    """Return a value as an error repeats it: on one line, and not for ever."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        assert isinstance(value, int)
        text = f"about {'-' * (value < 0)}10**{int(value.bit_length() * math.log10(2))}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def typed(value: object) -> str:
    """Return a value of a wrong type as an error repeats it."""
    return shown(value) if value is None else f"{shown(value)} ({type(value).__name__})"
