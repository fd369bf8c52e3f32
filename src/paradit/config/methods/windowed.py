"""Method `windowed`: each frame block is denoised alone with its context, and overlaps are blended."""

from __future__ import annotations

from paradit.config.methods.blocks import InBlocks, in_blocks
from paradit.config.methods.method import frame_bytes
from paradit.config.requests import ResolvedRequest
from paradit.models.spec import ModelSpec


class Windowed(InBlocks):
    name = "windowed"
    help = (
        "each frame block alone with its context, overlaps blended, for comparison (approximate: blocks do "
        "not see each other)"
    )
    sampler = "paradit.sampling.windowed:SAMPLER"

    def latents_bytes(self, request: ResolvedRequest, spec: ModelSpec, dtype_bytes: int) -> int:
        queue = in_blocks(request).queue(spec)
        # The two windows before are kept, because they may overlap the next one.
        waiting = min(2, (queue.num_blocks or 1) - 1) * queue.window_frames
        return super().latents_bytes(request, spec, dtype_bytes) + waiting * frame_bytes(request, spec)


WINDOWED = Windowed()
