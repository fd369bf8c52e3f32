"""One step of a diffusers scheduler, with any noise that it adds drawn from a given generator."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from paradit.models.protocol import Scheduler


def solver_step(
    scheduler: Scheduler, prediction: Tensor, timestep: Tensor, latents: Tensor, generator: torch.Generator
) -> Tensor:
    """Take one denoising step with a scheduler; return the new latents [B, C, F, h, w].

    The new latents have the dtype of `latents` (fp32). generator: CPU generator for noise that the scheduler
    adds, so that all devices draw the same noise.
    """
    draws = "generator" in inspect.signature(scheduler.step).parameters
    arguments = {"generator": generator} if draws else {}
    # Some schedulers return further values after the sample.
    (stepped,) = scheduler.step(prediction, timestep, latents, return_dict=False, **arguments)[:1]
    return stepped.to(latents.dtype)
