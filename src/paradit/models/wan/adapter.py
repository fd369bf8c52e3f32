"""A loaded Wan text-to-video model: diffusers' WanPipeline taken apart into what each stage needs."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from diffusers import WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.loading import fingerprint, load_pipeline, stored_transformers
from paradit.models.common.prompts import left_out
from paradit.models.common.schedulers import set_by_count
from paradit.models.protocol import Prompt, Scheduler
from paradit.models.spec import ModelSpec
from paradit.models.wan.decoder import WanDecoder
from paradit.models.wan.transformer import LAYERS, WanTransformer
from paradit.scheduling.stages import STAGES


def load(
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    *,
    stages: Collection[str] = STAGES,
    compile: bool = False,
    layers: bool = True,
) -> WanModel:
    """Load a checked folder's safetensors; the VAE stays in fp32, as diffusers advises for Wan.

    Only what `stages` need. layers: whether the transformers have theirs at once, or by `keep_layers`.
    """
    pipeline = load_pipeline(
        WanPipeline, spec, dtype, device, stages, without_layers=() if layers else LAYERS
    )
    return WanModel(pipeline, spec, dtype, compile=compile)


class WanModel:
    """A WanPipeline's components, as a VideoModel."""

    def __init__(self, pipeline: Any, spec: ModelSpec, dtype: torch.dtype, *, compile: bool = False) -> None:
        self.spec, self.dtype = spec, dtype
        self.device: torch.device = pipeline.device
        self.experts = [
            WanTransformer(getattr(pipeline, name), compile=compile, stored=stored)
            for name, stored in stored_transformers(spec, dtype, self.device).items()
            if getattr(pipeline, name) is not None
        ]
        self._pipeline = pipeline

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the one part of a prompt: (1, T, text_dim)."""
        return ((1, self.spec.text_length, self.spec.transformers[0].text_dim),)

    def fingerprint(self) -> bytes:
        """The same where the experts' weights are; cheap."""
        return fingerprint(expert.module for expert in self.experts)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:  # noqa: ARG002
        """(embeddings [1, T, text_dim],): the text encoder's, zero after the prompt's end."""
        embeds, _ = self._pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.spec.text_length,
            device=self.device,
        )
        return (embeds.to(self.dtype),)

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return what the text encoder does not read of a prompt that is too long for it."""
        length = self.spec.text_length
        cleaned = prompt_clean(prompt)  # type: ignore[no-untyped-call]
        rest = left_out(self._pipeline.tokenizer, cleaned, length)
        return {"the text encoder": (length, rest)} if rest else {}

    def scheduler(self, num_inference_steps: int) -> Scheduler:
        """A copy of the folder's scheduler, set to its steps: it keeps a history, which is one request's."""
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        set_by_count(scheduler, num_inference_steps, self.device)
        own: Scheduler = scheduler
        return own

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
