"""Method `windowed`: each frame block is denoised alone with its context, and overlaps are blended."""

from __future__ import annotations

from paradit.config.methods.blocks import InBlocks


class Windowed(InBlocks):
    name = "windowed"
    help = (
        "to compare dualparal to: each block alone with its context, overlaps blended; approximate: nothing "
        "passes between them"
    )
    sampler = "paradit.sampling.windowed:SAMPLER"


WINDOWED = Windowed()
