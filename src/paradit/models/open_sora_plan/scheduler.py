"""Scheduler of Open-Sora-Plan, for latents as the transformer reads them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from torch import Tensor


class VariancePreserving(EulerAncestralDiscreteScheduler):
    """EulerAncestralDiscreteScheduler whose latents keep the same variance in all steps, in fp32.

    Latents of diffusers' class grow with the noise, to about 4096 times the video's in the first step, so
    pipelines divide them by sqrt(sigma^2 + 1) for the transformer. Here the latents themselves are divided,
    outside of `step`, so no caller has to know. diffusers' class also rounds them to the dtype of the
    prediction, which is too coarse in bf16.
    """

    @property
    def init_noise_sigma(self) -> Tensor:
        """Factor from noise of variance 1 to the latents that denoising begins with; about 1."""
        scaled: Tensor = super().init_noise_sigma / _growth(self.sigmas.max())
        return scaled

    def step(  # type: ignore[override]  # diffusers names torch.FloatTensor
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = False,
    ) -> tuple[Any, ...]:
        """Take one step; return the latents, and the predicted clean latents."""
        assert not return_dict, "only tuples are returned"
        if self._step_index is None:
            self._init_step_index(timestep)
        before, after = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        self.is_scale_input_called = True
        given = model_output.float(), timestep, sample * _growth(before)
        stepped, clean = super().step(*given, generator=generator, return_dict=False)
        return stepped / _growth(after), clean


def _growth(sigma: Tensor) -> Tensor:
    """Return the standard deviation of diffusers' latents at a noise level, if the video's is 1."""
    return (sigma**2 + 1) ** 0.5
