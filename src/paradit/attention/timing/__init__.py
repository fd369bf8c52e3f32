"""Timing of a layer for each attention form: what each rank computes and sends, for the planner to simulate.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from paradit.attention.registry import Choice
from paradit.config.registry import imported
from paradit.planner.step import Branch, Layer

Timing: TypeAlias = Callable[[Branch, Choice], Layer]
"""Type of the function that `Form.timed_by` names, which returns the timing of a layer."""


def layer(branch: Branch, choice: Choice) -> Layer:
    """Return the timing of a layer for a choice of attention, as `attention.join` builds it."""
    return cast("Timing", imported(choice.form.timed_by))(branch, choice)
