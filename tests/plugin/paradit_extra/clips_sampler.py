"""Torch half of the method `clips`: each clip is denoised like a whole video."""

from functools import partial

from paradit.progress import Progress
from paradit.sampling import full_sequence
from paradit.sampling.block_sampler import PredictorSampler
from paradit.sampling.block_state import QueueState


def blocks(model, queue, prompts, noise, *, request, conditions, predictor, progress, state, save):
    """Yield the denoised latents of each block in order, on every rank that denoises."""
    same = {"request": request, "conditions": conditions, "predictor": predictor, "progress": Progress()}
    for number in queue.blocks(state.round if state else 0):
        (clip,) = full_sequence.denoise(
            model,
            noise.block(number)[:, :, : queue.frames_of(number)].to(model.device),
            prompts,
            first_frame=number * queue.block_frames,
            noise=partial(noise.step, number),
            **same,
        )
        progress.step("denoise", (number + 1) * queue.num_steps)
        yield clip
        if save:
            save(QueueState(round=number + 1))


SAMPLER = PredictorSampler(blocks, lambda _, round: round)  # one block is done after each clip
