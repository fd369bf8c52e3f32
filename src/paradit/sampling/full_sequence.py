"""Denoising of a whole video at once, as diffusers' pipelines do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.protocol import Prompt, Transformer, VideoModel
from paradit.parallel.predictor import Branches, LocalPredictor, Predictor
from paradit.progress import Progress
from paradit.sampling.early_stop import Unwanted
from paradit.sampling.experts import experts_of
from paradit.sampling.guidance import guide
from paradit.sampling.noise import initial_noise, step_generator
from paradit.sampling.sampler import Checkpoints, Sampler, Work
from paradit.sampling.solver import solver_step
from paradit.sampling.solver_state import kept, resumed
from paradit.trace.spans import STEP, span


def denoise(
    model: VideoModel,
    latents: Tensor,
    prompts: tuple[Prompt, ...],
    *,
    request: ResolvedRequest,
    conditions: tuple[Tensor, ...] = (),
    first_frame: int = 0,
    noise: Callable[[int], torch.Generator],
    progress: Progress,
    predictor: Predictor | None = None,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Tensor]:
    """Denoise a whole video, and yield its latents [B, C, F, h, w], fp32, as a single block.

    latents: the noise to begin with. request: the request, for its steps and its guidance. conditions: the
    request's encoded pictures. first_frame: index of the first of the latent frames in the request's video.
    noise: function that takes a step's index, counted from 0, and returns the random generator for noise that
    the scheduler adds in that step. checkpoints: saved progress to resume from and to add to; only the first
    rank has it. Steps are reported as stage "denoise".

    Raises FloatingPointError, naming the step, if the latents become non-finite (inf or NaN). Raises
    Unwanted, on all ranks after the same step, if `checkpoints` reports that the rest is no longer wanted.
    """
    predictor, scheduler = predictor or LocalPredictor(), model.scheduler(request)
    given = model.conditions(request, conditions)
    frames = range(first_frame, first_frame + latents.shape[2])
    experts = _Experts(model, predictor, given.prompts(prompts), latents, request)
    # A video to change skips some steps. Not every scheduler has a begin index.
    timesteps = scheduler.timesteps[getattr(scheduler, "begin_index", None) :]
    by_step, steps = experts_of(model, request, timesteps), len(timesteps)
    guidance_scales = request.guidance_scales(model.spec)
    # A decorated generator would keep its arguments, and with them the noise, to the end.
    with torch.no_grad(), progress.stage("denoise", total=steps):
        latents = given.begin(latents, scheduler)
        begun, latents = resumed(checkpoints, predictor, scheduler, latents, progress)
        for step in range(begun, steps):
            timestep = timesteps[step]
            with span(f"step {step + 1}", STEP):
                expert = by_step[step]
                transformer, contexts = experts.serve(expert)
                joined = given.model_input(latents, frames)
                scaled = given.model_timestep(timestep, latents, frames)
                predictions = predictor.predict(
                    transformer, joined, scaled, contexts, experts.layout, step=step
                )
                prediction = guide(predictions, guidance_scales[expert])
                latents = solver_step(scheduler, prediction, timestep, latents, noise(step))
                del predictions, prediction  # the next step needs the memory
                if not latents.isfinite().all():
                    raise FloatingPointError(f"the latents are not finite after step {step + 1}")
            progress.step("denoise", step + 1)
            goes_on = kept(checkpoints, predictor, scheduler, latents, step + 1)
            # All ranks follow the first one, because only it has checkpoints. After the last step there is
            # nothing left to end.
            if step + 1 < steps and not predictor.gather_number(int(goes_on))[0]:
                raise Unwanted
        latents = given.end(latents, frames)
    yield latents


class _Experts:
    """A model's expert transformers, each used for some of the steps, with encoded prompts for them."""

    def __init__(
        self,
        model: VideoModel,
        predictor: Predictor,
        prompts: tuple[Prompt, ...],
        latents: Tensor,
        request: ResolvedRequest,
    ) -> None:
        self._model, self._predictor, self._prompts = model, predictor, prompts
        self._branches = request.branches(model.spec)
        frames, height, width = latents.shape[2:]
        self.layout = model.experts[0].layout((frames, height, width))
        self._serving = -1

    def serve(self, expert: int) -> tuple[Transformer, Branches]:
        """Return an expert's transformer, and the prompts of its guidance branches in its form.

        The prompts are converted to an expert's form once.
        """
        transformer = self._model.experts[expert]
        if expert != self._serving:
            # Timesteps only fall, so an earlier expert is not needed again.
            prompts = self._prompts[: self._branches[expert]]
            self._serving, self._contexts = expert, self._predictor.contexts(transformer, prompts)
        return transformer, self._contexts


class FullSequence(Sampler):
    """Sampler that denoises all latents of a video at once, as diffusers does; all ranks take part."""

    def blocks(self, work: Work) -> Iterator[Tensor]:
        model, request, predictor = work.model, work.request, work.predictor
        # With different weights, ranks would mix the results of two models without any error.
        predictor.agree("the model", model.fingerprint())
        shape = (1, *latent_shape(request, model.spec))
        make = partial(initial_noise, shape, request.seed, model.device)
        return denoise(
            model,
            # Only the first rank draws the noise; the others receive it.
            predictor.share(make, shape, torch.float32, model.device),
            work.prompts,
            request=request,
            conditions=work.conditions,
            noise=partial(step_generator, request.seed),
            progress=work.progress,
            predictor=predictor,
            checkpoints=work.checkpoints,
        )


SAMPLER = FullSequence()
