"""Method `fifo`: each latent frame has its own noise level, and every step lowers all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from paradit.config.errors import InputError
from paradit.config.methods.blocks import BlocksRequest, InBlocks
from paradit.config.methods.method import frame_bytes, scheduler_holds
from paradit.config.methods.registry import methods_with
from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.spec import ModelSpec
from paradit.models.vae_spec import FP32_BYTES


@dataclass(frozen=True, kw_only=True)
class FrameQueueRequest(BlocksRequest):
    """Resolved request for a video whose latent frames are a queue, at as many noise levels as steps."""

    def window_frames(self, frames: int) -> int:
        # Of the frames after the queue, none are read; of those before it, the context.
        return min(super().window_frames(frames), self.num_inference_steps + self.context_frames)


class Fifo(InBlocks):
    name = "fifo"
    help = (
        "a noise level for each frame, for comparison (approximate: a frame sees only its neighbours, at "
        "levels that the model may not be trained on together)"
    )
    resolved: ClassVar[type[FrameQueueRequest]] = FrameQueueRequest
    sampler = "paradit.sampling.fifo:SAMPLER"
    timesteps_by_frame = True

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

    def latents_bytes(self, request: ResolvedRequest, spec: ModelSpec, dtype_bytes: int) -> int:
        request, frames = cast(FrameQueueRequest, request), latent_shape(request, spec)[1]
        block, context, window = request.block_frames, request.context_frames, request.window_frames(frames)
        active = min(request.num_inference_steps, frames)
        # Finished frames are kept until no window reads them, and until their block is complete.
        held = min(frames, active + max(context, block - 1))
        # Before the last window of a round runs, all others are predicted, with their context.
        predicted = (-(-active // block) - 1) * window
        values = held * (1 + scheduler_holds(request, spec)) + window * (1 + spec.latents_held)
        return round((values + predicted * dtype_bytes / FP32_BYTES) * frame_bytes(request, spec))


FIFO = Fifo()
