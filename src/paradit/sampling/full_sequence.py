"""Denoising a whole video at once, as diffusers' pipelines do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.protocol import Prompt, Scheduler, VideoModel
from paradit.parallel.team import Alone, Branches, Team
from paradit.progress import Progress
from paradit.sampling.early_end import Unwanted
from paradit.sampling.guidance import guide, scales
from paradit.sampling.noise import initial_noise, step_generator
from paradit.sampling.position import Position, last_position, restore, scheduler_state
from paradit.sampling.sampler import Checkpoints, Sampler, Work
from paradit.sampling.solver import solver_step
from paradit.trace.spans import STEP, span


@torch.no_grad()
def denoise(
    model: VideoModel,
    latents: Tensor,
    prompts: tuple[Prompt, ...],
    *,
    num_inference_steps: int,
    guidance_scales: tuple[float, ...],
    noise: Callable[[int], torch.Generator],
    progress: Progress,
    team: Team | None = None,
    checkpoints: Checkpoints | None = None,
) -> Tensor:
    """The clean latents [B, C, F, h, w], fp32, from noise of that shape.

    prompts: the prompt and, for guidance, the negative prompt, as the model encodes them.
    guidance_scales: one for each of the model's experts. noise: the generator of what a stochastic scheduler
    adds in a step, counted from 0. team: who computes; this process alone unless given.
    checkpoints: where the work may have been begun, and is kept. Steps are told as stage "denoise". Raises
    FloatingPointError, naming the step, if the latents become infinite or are no numbers, and Unwanted, on
    all processes after the same step, if the first one's `checkpoints` end the work.
    """
    team = team or Alone()
    _, _, frames, height, width = latents.shape
    layout = model.experts[0].layout((frames, height, width))
    scheduler = model.scheduler(num_inference_steps)
    begun = last_position(checkpoints, team, latents.device)
    if begun is not None:
        latents = begun.latents.to(latents.device)
        restore(scheduler, begun.scheduler, latents.device)
        progress.step("denoise", begun.step)
    serving: int | None = None
    contexts: Branches | None = None
    for step in range(begun.step if begun else 0, len(scheduler.timesteps)):
        timestep = scheduler.timesteps[step]
        with span(f"step {step + 1}", STEP):
            expert = model.expert_at(timestep)
            transformer = model.experts[expert]
            if expert != serving:
                # Timesteps only fall, so an expert that was left does not come back.
                serving, contexts = expert, team.contexts(transformer, prompts)
            assert contexts is not None
            predictions = team.predict(
                transformer,
                latents.to(model.dtype),
                model.model_timestep(timestep, latents),
                contexts,
                layout,
                step=step,
            )
            prediction = guide(predictions, guidance_scales[expert])
            latents = solver_step(scheduler, prediction, timestep, latents, noise(step))
            if not latents.isfinite().all():
                raise FloatingPointError(f"the latents are not finite after step {step + 1}")
        progress.step("denoise", step + 1)
        goes_on = True
        if checkpoints and team.is_first:
            goes_on = checkpoints.offer(partial(_position, step + 1, latents, scheduler))
        if step + 1 < len(scheduler.timesteps) and not team.gather_number(int(goes_on))[0]:
            raise Unwanted
    return latents


def _position(step: int, latents: Tensor, scheduler: Scheduler) -> bytes:
    return Position(step=step, latents=latents, scheduler=scheduler_state(scheduler)).to_bytes()


class FullSequence(Sampler):
    """All latents at once, on every rank of the team."""

    def total(self, model: VideoModel, request: ResolvedRequest) -> int:
        return len(model.scheduler(request.num_inference_steps).timesteps)  # some schedulers take two a step

    def blocks(self, work: Work) -> Iterator[Tensor]:
        model, request, team = work.model, work.request, work.team
        team.agree("the model", model.fingerprint())
        shape = (1, *latent_shape(request, model.spec))
        yield denoise(
            model,
            team.share(
                partial(initial_noise, shape, request.seed, model.device), shape, torch.float32, model.device
            ),
            work.prompts,
            num_inference_steps=request.num_inference_steps,
            guidance_scales=scales(model.spec, request.guidance_scale),
            noise=partial(step_generator, request.seed),
            progress=work.progress,
            team=team,
            checkpoints=work.checkpoints,
        )


SAMPLER = FullSequence()
