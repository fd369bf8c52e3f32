"""A loaded Wan text-to-video model: diffusers' WanPipeline taken apart into what each stage needs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import WanPipeline
from torch import Tensor

from paradit.models.protocol import Frames, Prompt, Scheduler
from paradit.models.spec import ModelSpec
from paradit.models.wan.decoder import decode
from paradit.models.wan.transformer import WanTransformer


def load(spec: ModelSpec, dtype: torch.dtype, device: torch.device, denoise_only: bool = False) -> WanModel:
    """Load a checked folder's safetensors; the VAE stays in fp32, as diffusers advises for Wan.

    `denoise_only` leaves the text encoder and the VAE out.
    """
    left_out = dict.fromkeys(("text_encoder", "tokenizer", "vae")) if denoise_only else {}
    with _no_progress_bars():
        pipeline: Any = WanPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            spec.folder,
            dtype={"vae": torch.float32, "default": dtype},
            use_safetensors=True,
            local_files_only=True,
            **left_out,
        )
    return WanModel(pipeline.to(device), spec)


class WanModel:
    """A WanPipeline's components, as a VideoModel."""

    def __init__(self, pipeline: Any, spec: ModelSpec) -> None:
        self.spec = spec
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = pipeline.transformer.dtype
        modules = [pipeline.transformer, pipeline.transformer_2]
        self.experts = [WanTransformer(module) for module in modules if module is not None]
        self._pipeline = pipeline

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the one part of a prompt: (1, T, text_dim)."""
        return ((1, self.spec.text_length, self.spec.transformers[0].text_dim),)

    def fingerprint(self) -> bytes:
        """Eight values of every parameter of the experts: another checkpoint, or a LoRA, shows in them."""
        values = [
            parameter.detach().flatten()[:: max(1, parameter.numel() // 8)].float()
            for expert in self.experts
            for parameter in expert.module.parameters()
        ]
        return torch.cat(values).cpu().numpy().tobytes()

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

    def prepare_latents(self, num_frames: int, height: int, width: int, seed: int) -> Tensor:
        """Noise [1, C, F, h, w] in fp32, drawn on the CPU, so that a seed means the same everywhere."""
        latents: Tensor = self._pipeline.prepare_latents(
            batch_size=1,
            num_channels_latents=self.spec.transformers[0].in_channels,
            height=height,
            width=width,
            num_frames=num_frames,
            dtype=torch.float32,
            device=self.device,
            generator=torch.Generator("cpu").manual_seed(seed),
        )
        return latents

    def scheduler(self, num_inference_steps: int) -> Scheduler:
        """A copy of the folder's scheduler, set to its steps: it keeps a history, which is one request's."""
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        scheduler.set_begin_index(0)
        own: Scheduler = scheduler
        return own

    def expert_at(self, timestep: Tensor) -> int:
        """0, or 1 where a second expert serves the timesteps below the boundary (Wan 2.2 A14B)."""
        if self.spec.boundary_ratio is None:
            return 0
        training_steps = self._pipeline.scheduler.config.num_train_timesteps
        return int(timestep < self.spec.boundary_ratio * training_steps)

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """[B], or [B, S] with the timestep of every token (Wan 2.2 TI2V), all alike in text-to-video."""
        batch, _, *grid = latents.shape
        if not self.spec.expand_timesteps:
            return timestep.expand(batch)
        patch = self.spec.transformers[0].patch_size
        tokens = 1
        for size, step in zip(grid, patch, strict=True):
            tokens *= size // step
        return timestep.float().expand(batch, tokens)

    def decode(self, latents: Tensor) -> Iterator[Frames]:
        """Frames [f, H, W, 3] for each latent frame of latents [1, C, F, h, w]: first 1, then 4 each."""
        return decode(self._pipeline.vae, self._pipeline.video_processor, latents)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the libraries' own bars off the terminal: progress is shown by stage, in one way."""
    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
