"""A loaded HunyuanVideo model: diffusers' HunyuanVideoPipeline taken apart into what each stage needs."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.loading import fingerprint, load_pipeline, stored_transformers
from paradit.models.common.prompts import left_out
from paradit.models.common.schedulers import set_by_sigmas
from paradit.models.hunyuan_video.decoder import HunyuanVideoDecoder
from paradit.models.hunyuan_video.spec import HunyuanVideoTransformerSpec
from paradit.models.hunyuan_video.transformer import LAYERS, HunyuanVideoTransformer
from paradit.models.protocol import Prompt, Scheduler
from paradit.models.spec import ModelSpec
from paradit.scheduling.stages import STAGES

CLIP_LENGTH = 77
"""Number of tokens that HunyuanVideoPipeline has CLIP read."""


def load(
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    *,
    stages: Collection[str] = STAGES,
    compile: bool = False,
    layers: bool = True,
) -> HunyuanVideoModel:
    """Load a checked folder's safetensors; the VAE stays in fp32.

    Only what `stages` need. layers: whether the transformers have theirs at once, or by `keep_layers`.
    """
    pipeline = load_pipeline(
        HunyuanVideoPipeline, spec, dtype, device, stages, without_layers=() if layers else LAYERS
    )
    return HunyuanVideoModel(pipeline, spec, dtype, compile=compile)


class HunyuanVideoModel:
    """A HunyuanVideoPipeline's components, as a VideoModel."""

    def __init__(self, pipeline: Any, spec: ModelSpec, dtype: torch.dtype, *, compile: bool = False) -> None:
        self.spec, self.dtype = spec, dtype
        self.device: torch.device = pipeline.device
        self.experts = [
            HunyuanVideoTransformer(getattr(pipeline, name), compile=compile, stored=stored)
            for name, stored in stored_transformers(spec, dtype, self.device).items()
            if getattr(pipeline, name) is not None
        ]
        self._pipeline = pipeline

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the parts that `encode_prompt` gives."""
        (transformer,) = self.spec.transformers
        assert isinstance(transformer, HunyuanVideoTransformerSpec)
        length = self.spec.text_length
        return (1, length, transformer.text_dim), (1, length), (1, transformer.pooled_dim), (1,)

    def fingerprint(self) -> bytes:
        """The same where the transformer's weights are; cheap."""
        return fingerprint(expert.module for expert in self.experts)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:
        """What the transformer reads, but the latents and the timestep.

        The Llama model's hidden states [1, T, text_dim] and their mask [1, T], the CLIP model's pooled output
        [1, pooled_dim], and a thousand times the guidance scale [1].
        """
        embeds, pooled, mask = self._pipeline.encode_prompt(
            prompt=prompt, device=self.device, max_sequence_length=self.spec.text_length
        )
        if guidance_scale is None:
            guidance_scale = self.spec.defaults.guidance_scale
        guidance = torch.tensor([guidance_scale], dtype=self.dtype, device=self.device) * 1000.0
        return embeds.to(self.dtype), mask.to(self.dtype), pooled.to(self.dtype), guidance

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return what Llama and CLIP do not read of a prompt that is too long for them."""
        template: Any = DEFAULT_PROMPT_TEMPLATE
        text, length = template["template"].format(prompt), self.spec.text_length
        llama = left_out(self._pipeline.tokenizer, text, length + template["crop_start"])
        clip = left_out(self._pipeline.tokenizer_2, prompt, CLIP_LENGTH)
        both = {"Llama": (length, llama), "CLIP": (CLIP_LENGTH, clip)}
        return {name: found for name, found in both.items() if found[1]}

    def scheduler(self, num_inference_steps: int) -> Scheduler:
        """A copy of the folder's scheduler, set to its steps: it counts them, for one request."""
        scheduler: Any = copy.deepcopy(self._pipeline.scheduler)
        if type(scheduler) is FlowMatchEulerDiscreteScheduler:
            scheduler = in_fp32(scheduler)
        set_by_sigmas(scheduler, num_inference_steps, self.device)
        own: Scheduler = scheduler
        return own

    def expert_at(self, timestep: Tensor) -> int:  # noqa: ARG002
        """There is one."""
        return 0

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """[B], in the latents' dtype."""
        return timestep.expand(len(latents)).to(latents.dtype)

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> HunyuanVideoDecoder:  # noqa: ARG002
        """Decodes latents [1, C, F, h, w]. It keeps nothing between a tile's pieces that could be parked."""
        return HunyuanVideoDecoder(self._pipeline.vae, self._pipeline.video_processor, latents)


def in_fp32(scheduler: Any) -> Any:
    """Return a FlowMatchEulerDiscreteScheduler like this one, whose latents stay in fp32."""
    made: Any = _InFp32.from_config(scheduler.config)  # type: ignore[no-untyped-call]
    return made


class _InFp32(FlowMatchEulerDiscreteScheduler):
    """FlowMatchEulerDiscreteScheduler, with latents that stay in fp32.

    It rounds each step's result to the dtype of the prediction. So in bf16 the pipeline's latents lose what a
    small step adds, and its timesteps are rounded too, by up to 2; ours are not. In fp32 it is the same.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        *,
        generator: torch.Generator | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        base: Any = super()
        stepped: tuple[Tensor] = base.step(
            model_output.float(), timestep, sample, generator=generator, return_dict=return_dict
        )
        return stepped
