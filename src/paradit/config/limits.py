"""Limits on the numbers that a user gives, and the checks of them. Torch-free.

Every count and amount is checked here, whether it comes from the command line, a file or Python.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import SupportsFloat, SupportsIndex

from paradit.config.errors import InputError

MAX_RANKS = 128
"""Largest number of ranks in a run, and of GPUs in a plan; far more than any real run has."""
MAX_CHUNKS = 128
"""Largest number of chunks that a rank's attention data may be sent in; more than models have heads."""
MAX_FRAMES = 10**6
"""Largest number of frames of a video with a set length; hours of video."""
MAX_SECONDS = 10**7
"""Largest number of seconds that a user may give; about four months."""
MAX_GUIDANCE = 1000
MIN_SHIFT, MAX_SHIFT = 0.01, 100
"""Smallest and largest timestep shift; models have 1 to 12."""
MAX_SIDE = 2**14
"""Largest width, and largest height, of a video in pixels."""
MAX_TILE = 2**16
"""Largest side, in pixels, of a tile that the VAE decodes at once; larger than any allowed picture."""
MAX_PROMPTS = 10_000
MAX_PROMPT = 100_000
"""Largest number of characters in a prompt; a hundred times what text encoders read."""
MAX_FILE = 10**7
"""Largest size, in bytes, of a text file that is read, such as prompts, a placement or a configuration."""
SHOWN = 60
"""Number of characters of the user's value that an error message repeats; the rest is cut off."""


def whole(name: str, value: object, *, most: float = math.inf, least: float = 1, hint: str = "") -> int:
    """Return `value` as a whole number after checking it against limits. Raises InputError.

    name: name of the value in error messages. hint: advice in the message if the value is above `most`.
    """
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
        raise InputError(f"{name} must be at most {most}, got {shown(number)}{hint}")
    return number


def amount(name: str, value: object, *, most: float, least: float = 0.0, hint: str = "") -> float:
    """Return `value` as a finite number above 0 after checking it against limits. Raises InputError.

    name: name of the value in error messages. hint: advice in the message if the value is not finite or not
    above 0.
    """
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
    """Raise InputError if `value` is not one of the words in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def digits(text: str) -> int:
    """Return a string of digits as an integer; more than 18 digits become 10**18, above every limit."""
    return int(text) if len(text) <= 18 else 10**18


def shown(value: object) -> str:
    """Return a value as text for an error message: its repr on one line, cut after `SHOWN` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        assert isinstance(value, int)
        text = f"about {'-' * (value < 0)}10**{int(value.bit_length() * math.log10(2))}"
    text = " ".join(text.splitlines())  # a tensor's repr has several lines
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def typed(value: object) -> str:
    """Return a value of the wrong type as text for an error message: its repr and the name of its type."""
    return shown(value) if value is None else f"{shown(value)} ({type(value).__name__})"
