"""Classifier-free guidance (arXiv 2207.12598): the guided prediction, and the scale for each expert."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec


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


def scales(spec: ModelSpec, request: ResolvedRequest) -> tuple[float, ...]:
    """Return a request's guidance scale for each of a model's experts.

    Experts may have different default scales. A request's `guidance_scale` that is not the model's default is
    used for all experts, as in diffusers, unless the request has a `guidance_scale_2`.
    """
    first, second, defaults = request.guidance_scale, request.guidance_scale_2, spec.defaults
    if second is None and first == defaults.guidance_scale:
        second = defaults.guidance_scale_2
    return (first, first if second is None else second)[: len(spec.transformers)]
