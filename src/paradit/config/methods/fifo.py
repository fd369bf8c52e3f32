"""Method `fifo`: each latent frame has its own noise level, and every step lowers all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paradit.config.errors import InputError
from paradit.config.methods.blocks import InBlocks
from paradit.config.methods.registry import methods_with
from paradit.models.spec import ModelSpec


class Fifo(InBlocks):
    name = "fifo"
    help = (
        "a noise level for each frame, for comparison (approximate: a frame sees only its neighbours, at "
        "levels that the model may not be trained on together)"
    )
    sampler = "paradit.sampling.fifo:SAMPLER"

    def chosen(self, options: object, fields: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
        found = super().chosen(options, fields, spec)
        if spec.one_timestep or len(spec.transformers) > 1:
            has = (
                "one noise level for all frames"
                if spec.one_timestep
                else "two transformers, for high and low noise"
            )
            raise InputError(
                f"method {self.name} needs all noise levels at once, but the model {spec.name!r} has {has}: "
                f"use method {methods_with('block_frames')[0]}"
            )
        return found


FIFO = Fifo()
