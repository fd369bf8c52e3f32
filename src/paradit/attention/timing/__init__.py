"""Simulation, for the planner, of a transformer layer with each form of attention. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from paradit.attention.registry import Choice
from paradit.config.plugins import imported
from paradit.planner.step import Branch, Layer

Timing: TypeAlias = Callable[[Branch, Choice], Layer]
"""Type of the function, named by `Form.timed_by`, that simulates a transformer layer for the planner."""


def layer(branch: Branch, choice: Choice) -> Layer:
    """Return the planner's simulation of a transformer layer with the chosen attention form."""
    return cast("Timing", imported(choice.form.timed_by))(branch, choice)
