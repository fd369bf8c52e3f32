"""Torch-free half of the method `clips`: frame blocks that are denoised independently."""

from paradit.config.methods.blocks import InBlocks


class Clips(InBlocks):
    name = "clips"
    help = "cuts: each block is a clip by itself (approximate: nothing passes between them)"
    sampler = "paradit_extra.clips_sampler:SAMPLER"

    def chosen(self, options, fields, spec):  # noqa: ARG002
        return {"block_frames": options.block_frames or spec.trained_latent_frames, "context_frames": 0}


CLIPS = Clips()
