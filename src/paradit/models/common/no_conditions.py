"""Conditions of a request without pictures: they change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from paradit.models.protocol import Prompt, Scheduler
from paradit.models.spec import ModelSpec


class Model(Protocol):
    """Interface of a model, as far as conditions need it."""

    spec: ModelSpec
    dtype: torch.dtype

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor: ...


class NoConditions:
    """Conditions of a request from text alone, which implement `models.protocol.Conditions`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def prompts(self, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        """Return the encoded prompts unchanged."""
        return prompts

    def begin(self, noise: Tensor, scheduler: Scheduler) -> Tensor:  # noqa: ARG002
        """Return the noise unchanged."""
        return noise

    def model_input(self, latents: Tensor, frames: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Return the latents in the transformer's dtype."""
        return latents.to(self._model.dtype)

    def model_timestep(self, timestep: Tensor, latents: Tensor, frames: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Return the timestep as the model's transformer takes it for text alone."""
        return self._model.model_timestep(timestep, latents)

    def end(self, latents: Tensor, frames: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Return the denoised latents unchanged."""
        return latents
