"""Planner's models of a layer with each attention form: what ranks compute, send and wait for. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from paradit.attention.registry import Choice
from paradit.config.registry import imported
from paradit.planner.step import Branch, Layer

Timing: TypeAlias = Callable[[Branch, Choice], Layer]
"""Type of the function that `Form.timed_by` names, which returns the planner's model of a layer."""


def layer(branch: Branch, choice: Choice) -> Layer:
    """Return the planner's model of a layer with a choice of attention, as `attention.join` builds it."""
    return cast("Timing", imported(choice.form.timed_by))(branch, choice)
