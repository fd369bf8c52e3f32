"""A diffusers text-to-video pipeline, loaded, as a `VideoModel`: what families have in common."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from paradit.models.common.cut import CutModule
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.loading import fingerprint, load_pipeline, stored_transformers
from paradit.models.common.prompts import left_out
from paradit.models.protocol import Decoder, Prompt, Scheduler
from paradit.models.spec import ModelSpec
from paradit.scheduling.stages import STAGES


class PipelineModel(ABC):
    """A pipeline's components, as a `VideoModel`; a family says the rest."""

    PIPELINE: ClassVar[type[DiffusionPipeline]]
    """The diffusers pipeline."""
    TRANSFORMER: ClassVar[type[CutModule[Any, Any, Any]]]
    """Its transformers, cut."""

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device,
        *,
        stages: Collection[str] = STAGES,
        compile: bool = False,
        layers: bool = True,
    ) -> Self:
        """Load a checked folder's safetensors; the VAE stays in fp32.

        Only what `stages` need. layers: whether the transformers have theirs at once, or by `keep_layers`.
        """
        lists = () if layers else cls.TRANSFORMER.LISTS
        pipeline = load_pipeline(cls.PIPELINE, spec, dtype, device, stages, without_layers=lists)
        return cls(pipeline, spec, dtype, compile=compile)

    def __init__(
        self, pipeline: DiffusionPipeline, spec: ModelSpec, dtype: torch.dtype, *, compile: bool = False
    ) -> None:
        self.spec, self.dtype = spec, dtype
        self.device: torch.device = pipeline.device
        self.experts = [
            self.TRANSFORMER(getattr(pipeline, name), compile=compile, stored=stored)
            for name, stored in stored_transformers(spec, dtype, self.device).items()
            if getattr(pipeline, name) is not None
        ]
        self._pipeline = pipeline

    @staticmethod
    @abstractmethod
    def schedule(scheduler: Scheduler, num_inference_steps: int, device: torch.device) -> None:
        """Set a scheduler to its steps as the pipeline does; raises what the scheduler raises."""

    @abstractmethod
    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> Decoder:
        """The decoder of latents [1, C, F, h, w]. park: see `VideoModel`."""

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts that `encode_prompt` returns: of embeddings, from one text encoder."""
        return ((1, self.spec.text_length, self.spec.transformers[0].text_dim),)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:  # noqa: ARG002
        """What the transformer reads of a prompt, in `dtype`."""
        embeds, _ = self._pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.spec.text_length,
            device=self.device,
        )
        return (embeds.to(self.dtype),)

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return what text encoders do not read of a prompt that is too long for them."""
        length = self.spec.text_length
        rest = left_out(self._pipeline.tokenizer, prompt, length)
        return {"the text encoder": (length, rest)} if rest else {}

    def fingerprint(self) -> bytes:
        """The same where the experts' weights are; cheap."""
        return fingerprint(expert.module for expert in self.experts)

    def scheduler(self, num_inference_steps: int) -> Scheduler:
        """A copy of the folder's scheduler, set to its steps: it keeps a history, which is one request's."""
        own = self.prepared(copy.deepcopy(self._pipeline.scheduler))
        self.schedule(own, num_inference_steps, self.device)
        return own

    def prepared(self, scheduler: Scheduler) -> Scheduler:
        """A scheduler as it is used, before it is set to its steps."""
        return scheduler

    def expert_at(self, timestep: Tensor) -> int:  # noqa: ARG002
        """The expert that serves a timestep: there is one."""
        return 0

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """The timestep of every video, [B]."""
        return timestep.expand(len(latents))
