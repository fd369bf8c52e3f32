"""Expert (one of a model's transformers) that computes each denoising step."""

from __future__ import annotations

from torch import Tensor

from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import VideoModel


def experts_of(model: VideoModel, request: ResolvedRequest, timesteps: Tensor) -> list[int]:
    """Return the index of the expert for each evaluation of the model.

    timesteps: timesteps of the request's scheduler, one for each evaluation; some schedulers evaluate the
    model several times in a step.
    """
    if request.expert_step is None:
        return [model.expert_at(timestep) for timestep in timesteps]
    per_step = -(-len(timesteps) // request.num_inference_steps)
    return [int(number // per_step >= request.expert_step) for number in range(len(timesteps))]
