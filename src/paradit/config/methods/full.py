"""Method `full`: the whole video is denoised at once, as in diffusers' pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paradit.config.errors import InputError
from paradit.config.methods.method import Method
from paradit.config.placement import Placement
from paradit.config.requests import ENDLESS, ResolvedRequest
from paradit.models.spec import ModelSpec


class Full(Method):
    name = "full"
    help = "the whole video at once"
    default_for = ""
    changes_videos = True
    sampler = "paradit.sampling.full_sequence:SAMPLER"
    cost_model = "paradit.planner.whole_video:WHOLE"

    def suits(self, fields: Mapping[str, Any], spec: ModelSpec) -> bool:
        return not is_long(fields, spec)

    def chosen(self, options: object, fields: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:  # noqa: ARG002
        num_frames, compression = fields["num_frames"], spec.vae.temporal_compression
        below = (num_frames - 1) // compression * compression + 1
        if num_frames != below and not fields["trim"]:
            raise InputError(
                f"num_frames must be {compression}n+1 (the first frame, then {compression} to a latent "
                f"frame), got {num_frames}: use {below} or {below + compression}"
            )
        transformer = spec.transformers[0]
        most = (transformer.max_positions * transformer.patch_size[0] - 1) * compression + 1
        if num_frames > most:
            raise InputError(f"num_frames must be at most {most} (the model's positions), got {num_frames}")
        return {}

    def warnings(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> list[str]:
        found = super().warnings(placement, request, spec)
        trained = spec.defaults.train_frames
        if trained and not trained[0] <= request.num_frames <= trained[1]:
            found.append(
                f"num_frames {request.num_frames} is outside the {trained[0]} to {trained[1]} that the model "
                f"'{spec.name}' was trained on: the motion may break"
            )
        return found

    def by_rule(self, placement: Placement, request: ResolvedRequest, spec: ModelSpec) -> None:  # noqa: ARG002
        return None


def is_long(fields: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Return whether a video is so long that it is denoised in frame blocks unless the user names a method.

    A given video is changed as a whole, however long it is.
    fields: the request's values, as `resolved_fields` returns them.
    """
    if fields["video"] is not None:
        return False
    trained = spec.defaults.train_frames
    # A model may still make a video in one piece that is a little longer than it was trained on.
    most = trained[1] * (1 if fields["trim"] else 2) if trained else math.inf
    return bool(fields["num_frames"] > most or fields["num_frames"] == ENDLESS)


FULL = Full()
