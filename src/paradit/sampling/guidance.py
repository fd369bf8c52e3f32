"""Classifier-free guidance (arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def guide(predictions: Sequence[Tensor], scale: float) -> Tensor:
    """Return the prediction with classifier-free guidance.

    predictions: the conditional prediction, then the unconditional one. The result is unconditional + scale *
    (conditional - unconditional). A single prediction is returned unchanged.
    """
    conditional, *others = predictions
    if not others:
        return conditional
    (unconditional,) = others
    return unconditional + scale * (conditional - unconditional)
