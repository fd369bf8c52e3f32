"""The second stage: from noise to a video's latents."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from paradit.config.requests import Request, latent_shape
from paradit.models.protocol import Prompt, VideoModel
from paradit.parallel.team import Team
from paradit.progress import Progress
from paradit.sampling import full_sequence, guidance
from paradit.sampling.noise import initial_noise, step_generator
from paradit.sampling.position import Checkpoints


def denoise(
    model: VideoModel,
    request: Request,
    prompts: tuple[Prompt, ...],
    progress: Progress,
    team: Team,
    *,
    checkpoints: Checkpoints | None = None,
) -> Tensor:
    """The latents [1, C, F, h, w], fp32, of a resolved request, on every rank; told as stage "denoise".

    Every process of a team calls it with the same request. Raises RuntimeError, naming the rank, where
    requests or weights differ.
    """
    team.agree("what is asked for", repr(request).encode())
    team.agree("the model", model.fingerprint())
    steps, guidance_scale = request.num_inference_steps, request.guidance_scale
    assert steps and guidance_scale, f"not a resolved request: {request}"
    shape = (1, *latent_shape(request, model.spec))
    evaluations = len(model.scheduler(steps).timesteps)  # some schedulers take two a step
    with progress.stage("denoise", total=evaluations):
        noise = team.share(
            partial(initial_noise, shape, request.seed, model.device), shape, torch.float32, model.device
        )
        return full_sequence.denoise(
            model,
            noise,
            prompts,
            num_inference_steps=steps,
            guidance_scales=guidance.scales(model.spec, guidance_scale),
            noise=partial(step_generator, request.seed),
            progress=progress,
            team=team,
            checkpoints=checkpoints,
        )
