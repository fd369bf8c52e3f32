"""Adapter for a loaded Wan model: a diffusers pipeline split into the parts that each stage needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import diffusers
import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.wan.pipeline_wan import WanPipeline, prompt_clean
from torch import Tensor

from paradit.config.requests import ResolvedRequest
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.loading import without_torchvision_warning
from paradit.models.common.model import PipelineModel
from paradit.models.protocol import Conditions, Pixels, Scheduler, untold
from paradit.models.spec import ModelSpec
from paradit.models.wan.conditions import condition_shapes, conditions_of
from paradit.models.wan.decoder import WanDecoder
from paradit.models.wan.pictures import encode_pictures
from paradit.models.wan.transformer import WanTransformer


class WanModel(PipelineModel):
    """A loaded Wan pipeline with the VideoModel interface."""

    PIPELINE, TRANSFORMER = WanPipeline, WanTransformer

    @classmethod
    def pipeline_class(cls, spec: ModelSpec) -> type[DiffusionPipeline]:
        """Return the class of the diffusers pipeline to load, the one that the model's folder names."""
        with without_torchvision_warning():
            found = getattr(diffusers, spec.pipeline_class, cls.PIPELINE)
        return cast("type[DiffusionPipeline]", found)

    @staticmethod
    def schedule(
        scheduler: Scheduler,
        num_inference_steps: int,
        device: torch.device,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set a scheduler's steps as WanPipeline does, by their number alone, or by noise levels.

        sigmas: noise levels of the steps before the shift. Raises AttributeError for a scheduler without
        sigmas.
        """
        if sigmas is None:
            scheduler.set_timesteps(num_inference_steps, device=device)
        else:
            # Not `timesteps=`: flow schedulers then shift the sigmas, and not what the model gets.
            scheduler.set_timesteps(sigmas=np.array(sigmas), device=device)
        scheduler.set_begin_index(0)
        if not hasattr(scheduler, "sigmas"):
            raise AttributeError("it does not have sigmas, which WanPipeline reads in every step")

    def scheduler(self, request: ResolvedRequest) -> Scheduler:
        """Return a new copy of the scheduler, set to a request's denoising steps.

        With a video to change, denoising begins at a later step, as in WanVideoToVideoPipeline.
        """
        own = super().scheduler(request)
        if request.video is not None:
            steps = request.num_inference_steps
            # Some schedulers evaluate the model more than once in each step but the last.
            per_step = -(-len(own.timesteps) // steps)
            own.set_begin_index((steps - request.steps_to_do) * per_step)
        return own

    def condition_shapes(self, request: ResolvedRequest) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a request's encoded pictures, tensors in fp32; () if it has none."""
        return condition_shapes(self.spec, request)

    @torch.no_grad()
    def encode_conditions(
        self, request: ResolvedRequest, pixels: Pixels, told: Callable[[int], None] = untold
    ) -> tuple[Tensor, ...]:
        """Encode a request's pictures; return tensors in fp32, with the shapes of `condition_shapes`."""
        return encode_pictures(self._pipeline, self.spec, request, pixels, told)

    def conditions(self, request: ResolvedRequest, encoded: tuple[Tensor, ...]) -> Conditions:
        """Return the effect of a request's pictures, encoded by `encode_conditions`, on its denoising."""
        return conditions_of(self, request, [tensor.to(self.device) for tensor in encoded])

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return a mapping from the name of the text encoder to its token limit and a prompt's cut-off text.

        The mapping is empty if the prompt fits.
        """
        # WanPipeline cleans a prompt before it tokenizes it.
        return super().left_out(prompt_clean(prompt))  # type: ignore[no-untyped-call]

    def expert_at(self, timestep: Tensor) -> int:
        """Return the index, 0 or 1, of the expert (one of the model's transformers) to use at a timestep.

        Wan 2.2 A14B uses expert 1 at timesteps below `boundary_ratio` times the number of training timesteps;
        other models have only expert 0.
        """
        if self.spec.boundary_ratio is None:
            return 0
        training_steps = self._pipeline.scheduler.config.num_train_timesteps
        return int(timestep < self.spec.boundary_ratio * training_steps)

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the timestep as the transformer takes it: [B], or [B, F] with one for each frame of tokens.

        It is [B, F] for Wan 2.2 TI2V, and for any model if `timestep` is [F'], one for each latent frame.
        """
        batch, _, frames, _, _ = latents.shape
        if timestep.ndim == 0 and not self.spec.expand_timesteps:
            return timestep.expand(batch)
        by_frame = timestep.float().expand(frames)[:: self.spec.transformers[0].patch_size[0]]
        return by_frame.expand(batch, -1)

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> WanDecoder:
        """Return a decoder of latents [1, C, F, h, w].

        park: whether the decoder's cache for a tile is kept in host memory, not on the GPU, while other tiles
        are decoded.
        """
        return WanDecoder(self._pipeline.vae, self._pipeline.video_processor, latents, park=park)
