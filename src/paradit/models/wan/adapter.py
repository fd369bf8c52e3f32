"""A loaded Wan text-to-video model: diffusers' WanPipeline taken apart into what each stage needs."""

from __future__ import annotations

import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline, prompt_clean
from torch import Tensor

from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.model import PipelineModel
from paradit.models.protocol import Scheduler
from paradit.models.wan.decoder import WanDecoder
from paradit.models.wan.transformer import WanTransformer


class WanModel(PipelineModel):
    """A WanPipeline's components, as a VideoModel."""

    PIPELINE, TRANSFORMER = WanPipeline, WanTransformer

    @staticmethod
    def schedule(scheduler: Scheduler, num_inference_steps: int, device: torch.device) -> None:
        """Set a scheduler to its steps as WanPipeline does: by their number alone."""
        scheduler.set_timesteps(num_inference_steps, device=device)
        scheduler.set_begin_index(0)
        if not hasattr(scheduler, "sigmas"):
            raise AttributeError("it has no sigmas, which WanPipeline reads in every step")

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return what the text encoder does not read of a prompt that is too long for it."""
        return super().left_out(prompt_clean(prompt))  # type: ignore[no-untyped-call]

    def expert_at(self, timestep: Tensor) -> int:
        """0, or 1 where a second expert serves the timesteps below the boundary (Wan 2.2 A14B)."""
        if self.spec.boundary_ratio is None:
            return 0
        training_steps = self._pipeline.scheduler.config.num_train_timesteps
        return int(timestep < self.spec.boundary_ratio * training_steps)

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """[B], or [B, S] with that of every token: in Wan 2.2 TI2V, and where each frame has its own."""
        batch, _, frames, height, width = latents.shape
        if timestep.ndim == 0 and not self.spec.expand_timesteps:
            return timestep.expand(batch)
        patch_frames, patch_height, patch_width = self.spec.transformers[0].patch_size
        by_frame = timestep.float().expand(frames)[::patch_frames]
        tokens_a_frame = (height // patch_height) * (width // patch_width)
        return by_frame.repeat_interleave(tokens_a_frame).expand(batch, -1)

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> WanDecoder:
        """Decodes latents [1, C, F, h, w]. park: tiles' caches wait in the machine's memory."""
        return WanDecoder(self._pipeline.vae, self._pipeline.video_processor, latents, park=park)
