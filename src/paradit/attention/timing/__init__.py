"""What ranks do in a layer, as the planner plays it, for each form of attention. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from paradit.attention.registry import Choice
from paradit.config.registry import imported
from paradit.planner.step import Branch, Layer

Timing: TypeAlias = Callable[[Branch, Choice], Layer]
"""Type of what `Form.timed_by` names."""


def layer(branch: Branch, choice: Choice) -> Layer:
    """Return what a rank does in a layer, in the order of what `attention.join` builds."""
    return cast("Timing", imported(choice.form.timed_by))(branch, choice)
