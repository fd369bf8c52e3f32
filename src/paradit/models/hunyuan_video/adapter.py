"""Adapter for a loaded HunyuanVideo model: HunyuanVideoPipeline split into the parts for each stage."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import (
    DEFAULT_PROMPT_TEMPLATE,
    HunyuanVideoPipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.long_prompts import left_out
from paradit.models.common.model import PipelineModel
from paradit.models.hunyuan_video.decoder import HunyuanVideoDecoder
from paradit.models.hunyuan_video.spec import HunyuanVideoTransformerSpec
from paradit.models.hunyuan_video.transformer import HunyuanVideoTransformer
from paradit.models.protocol import Prompt, Scheduler

CLIP_LENGTH = 77
"""Largest number of tokens that the CLIP text encoder reads in HunyuanVideoPipeline."""


class HunyuanVideoModel(PipelineModel):
    """A loaded HunyuanVideoPipeline with the VideoModel interface."""

    PIPELINE, TRANSFORMER = HunyuanVideoPipeline, HunyuanVideoTransformer

    @staticmethod
    def schedule(
        scheduler: Scheduler,
        num_inference_steps: int,
        device: torch.device,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set a scheduler's steps as HunyuanVideoPipeline does, with sigmas that fall evenly from 1.

        sigmas: noise levels of the steps before the shift, in place of these. Raises TypeError for a
        scheduler that takes no sigmas.
        """
        if "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise TypeError("it does not take sigmas, which HunyuanVideoPipeline passes to it")
        evenly = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
        levels = evenly if sigmas is None else np.array(sigmas)
        scheduler.set_timesteps(sigmas=levels, device=device)
        scheduler.set_begin_index(0)

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that `encode_prompt` returns."""
        (transformer,) = self.spec.transformers
        assert isinstance(transformer, HunyuanVideoTransformerSpec)
        length = self.spec.text_length
        return (1, length, transformer.text_dim), (1, length), (1, transformer.pooled_dim), (1,)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:
        """Return the encoded prompt: all that the transformer reads besides the latents and the timestep.

        It consists of the Llama model's hidden states [1, T, text_dim] and their mask [1, T], the CLIP
        model's pooled output [1, pooled_dim], and a thousand times the guidance scale [1].
        """
        embeds, pooled, mask = self._pipeline.encode_prompt(
            prompt=prompt, device=self.device, max_sequence_length=self.spec.text_length
        )
        if guidance_scale is None:
            guidance_scale = self.spec.defaults.guidance_scale
        guidance = torch.tensor([guidance_scale], dtype=self.dtype, device=self.device) * 1000.0
        return embeds.to(self.dtype), mask.to(self.dtype), pooled.to(self.dtype), guidance

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return a mapping from the name of a text encoder to its token limit and a prompt's cut-off text.

        The text encoders are Llama and CLIP, as far as the prompt is too long for them; the mapping is empty
        if it fits.
        """
        text, length = str(DEFAULT_PROMPT_TEMPLATE["template"]).format(prompt), self.spec.text_length
        crop_start = DEFAULT_PROMPT_TEMPLATE["crop_start"]
        assert isinstance(crop_start, int)
        # The pipeline cuts the template's own tokens off, after it has encoded them with the prompt.
        llama = left_out(self._pipeline.tokenizer, text, length + crop_start)
        clip = left_out(self._pipeline.tokenizer_2, prompt, CLIP_LENGTH)
        both = {"Llama": (length, llama), "CLIP": (CLIP_LENGTH, clip)}
        return {name: found for name, found in both.items() if found[1]}

    def prepared(self, scheduler: Scheduler) -> Scheduler:
        """Return the scheduler to denoise with, in place of the one that was loaded from the model's folder.

        scheduler: the loaded one. If it is a FlowMatchEulerDiscreteScheduler, an `_InFp32` is returned, which
        keeps latents in fp32. Any other scheduler is returned as it is.
        """
        return in_fp32(scheduler) if type(scheduler) is FlowMatchEulerDiscreteScheduler else scheduler

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the timestep repeated for every video of the batch, [B], in the dtype of the latents."""
        return timestep.expand(len(latents)).to(latents.dtype)

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> HunyuanVideoDecoder:  # noqa: ARG002
        """Return a decoder of latents [1, C, F, h, w].

        park: has no effect. In other model families it says where a decoder's caches are kept; this decoder
        has none.
        """
        return HunyuanVideoDecoder(self._pipeline.vae, self._pipeline.video_processor, latents)


def in_fp32(scheduler: Scheduler) -> Scheduler:
    """Return a scheduler configured like `scheduler`, a FlowMatchEuler one, that keeps latents in fp32."""
    made: Scheduler = _InFp32.from_config(scheduler.config)
    return made


class _InFp32(FlowMatchEulerDiscreteScheduler):
    """FlowMatchEulerDiscreteScheduler that keeps latents in fp32.

    diffusers' class rounds each step's result to the dtype of the prediction. In bf16, latents therefore lose
    what a small step adds, and timesteps are rounded too, by up to 2. This class rounds neither. In fp32 both
    classes are the same.
    """

    def step(  # type: ignore[override]  # diffusers names torch.FloatTensor
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        *,
        generator: torch.Generator | None = None,
        return_dict: bool = False,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Any, ...]:
        given = model_output.float(), timestep, sample
        return super().step(*given, generator=generator, return_dict=return_dict)  # type: ignore[arg-type]
