"""Refusal of stored weights that no module of a model takes; imports torch only to name them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

from paradit.config.errors import InputError
from paradit.config.plugins import imported

_NAMED = 3
"""Number of weights that an error names."""


def check_transformer(component: Path, stored: int, expected: int) -> None:
    """Refuse a transformer that has more parameters stored than its class has. Raises InputError.

    diffusers would leave the others out, and so run another model: a transformer trained with sparse
    attention, for instance, has gates that a dense one lacks. stored, expected: numbers of parameters.
    """
    if stored <= expected:
        return
    unknown = cast("Callable[[Path], list[str]]", imported("paradit.models.common.class_weights:unknown"))
    names = unknown(component)
    if not names:
        return
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    raise InputError(
        f"{component} has weights that no module of its class takes: {', '.join(names[:_NAMED])}{more}; "
        "without them it would be another model, so it is not supported"
    )
