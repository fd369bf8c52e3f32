"""Method `windowed`: each frame block is denoised alone with its context, and overlaps are blended."""

from __future__ import annotations

from paradit.config.methods.blocks import InBlocks


class Windowed(InBlocks):
    name = "windowed"
    help = (
        "each frame block alone with its context, overlaps blended, for comparison (approximate: blocks do "
        "not see each other)"
    )
    sampler = "paradit.sampling.windowed:SAMPLER"


WINDOWED = Windowed()
