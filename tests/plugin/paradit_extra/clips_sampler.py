"""The half of `clips` that has torch: a clip is denoised as a whole video is."""

from functools import partial

from paradit.sampling import full_sequence
from paradit.sampling.block_state import QueueState
from paradit.sampling.in_blocks import TeamSampler


def blocks(model, queue, prompts, noise, *, guidance_scales, team, progress, state, save):
    """The latents of each block in order, on every rank of the team."""
    for number in queue.blocks(state.round if state else 0):
        yield full_sequence.denoise(
            model,
            noise.block(number)[:, :, : queue.frames_of(number)].to(model.device),
            prompts,
            num_inference_steps=queue.num_steps,
            guidance_scales=guidance_scales,
            noise=partial(noise.step, number),
            progress=progress,
            team=team,
        )
        if save:
            save(QueueState(round=number + 1))


def finished(queue, round):  # noqa: ARG001
    """How many blocks are done when so many clips are."""
    return round


SAMPLER = TeamSampler(blocks, finished)
