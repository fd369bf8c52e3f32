"""Classifier-free guidance (arXiv 2207.12598): the guided prediction, and the scale for each expert."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

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


def scales(spec: ModelSpec, guidance_scale: float) -> tuple[float, ...]:
    """Return the guidance scale for each of a model's experts.

    Experts may have different default scales. A request's `guidance_scale` that is not the model's default is
    used for all experts, as in diffusers.
    """
    defaults = spec.defaults
    second = defaults.guidance_scale_2
    if second is None or guidance_scale != defaults.guidance_scale:
        second = guidance_scale
    return (guidance_scale, second)[: len(spec.transformers)]
