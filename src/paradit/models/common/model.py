"""Base class of loaded diffusers text-to-video pipelines, which implements most of `VideoModel`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from paradit.config.requests import ResolvedRequest
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.loading import fingerprint, load_pipeline, stored_transformers
from paradit.models.common.long_prompts import left_out
from paradit.models.common.no_conditions import NoConditions
from paradit.models.common.schedulers import scheduler_for
from paradit.models.common.split_module import SplitModule
from paradit.models.protocol import Conditions, Decoder, Pixels, Prompt, Scheduler, untold
from paradit.models.spec import ModelSpec
from paradit.scheduling.stages import STAGES


class PipelineModel(ABC):
    """A loaded diffusers pipeline with the `VideoModel` interface; each model family subclasses it."""

    PIPELINE: ClassVar[type[DiffusionPipeline]]
    """Class of the diffusers pipeline."""
    TRANSFORMER: ClassVar[type[SplitModule[Any, Any, Any]]]
    """Class that splits the pipeline's transformers at their attention."""

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
        """Load the components that `stages` need from a checked folder's safetensors; the VAE stays in fp32.

        layers: whether the transformers' layers are loaded at once; if not, `keep_layers` reads them later.
        """
        lists = () if layers else cls.TRANSFORMER.LISTS
        pipeline_class = cls.pipeline_class(spec)
        pipeline = load_pipeline(pipeline_class, spec, dtype, device, stages, without_layers=lists)
        return cls(pipeline, spec, dtype, compile=compile)

    def __init__(
        self, pipeline: DiffusionPipeline, spec: ModelSpec, dtype: torch.dtype, *, compile: bool = False
    ) -> None:
        self.spec, self.dtype = spec, dtype
        self.device: torch.device = pipeline.device
        self.experts = [
            self.TRANSFORMER(getattr(pipeline, name), compile=compile, stored=stored)
            for name, stored in stored_transformers(spec, dtype, self.device).items()
            # None if no stage of this rank needs the transformers.
            if getattr(pipeline, name) is not None
        ]
        self._pipeline = pipeline

    @classmethod
    def pipeline_class(cls, spec: ModelSpec) -> type[DiffusionPipeline]:  # noqa: ARG003
        """Return the class of the diffusers pipeline to load: `PIPELINE`, unless a family overrides this."""
        return cls.PIPELINE

    @staticmethod
    @abstractmethod
    def schedule(
        scheduler: Scheduler,
        num_inference_steps: int,
        device: torch.device,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set a scheduler's steps as the model family's pipeline does, or by noise levels, before the shift.

        sigmas: noise levels of the steps, in place of the pipeline's own. May raise any error that the
        scheduler raises.
        """

    @abstractmethod
    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> Decoder:
        """Return a decoder of latents [1, C, F, h, w].

        park: whether the decoder's cache for a tile is kept in host memory, not on the GPU, while other tiles
        are decoded.
        """

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that `encode_prompt` returns: here those of one text encoder's embeddings."""
        return ((1, self.spec.text_length, self.spec.transformers[0].text_dim),)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:  # noqa: ARG002
        """Encode a prompt: return the embeddings that the transformer reads, in the model's dtype."""
        embeds, _ = self._pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=self.spec.text_length,
            device=self.device,
        )
        return (embeds.to(self.dtype),)

    def left_out(self, prompt: str) -> dict[str, tuple[int, str]]:
        """Return a mapping from the name of a text encoder to its token limit and a prompt's cut-off text.

        It has only text encoders for which the prompt is too long, so it is empty if the prompt fits.
        """
        length = self.spec.text_length
        rest = left_out(self._pipeline.tokenizer, prompt, length)
        return {"the text encoder": (length, rest)} if rest else {}

    def fingerprint(self) -> bytes:
        """Return a fast fingerprint of the transformers' weights: bytes that are equal for equal weights."""
        return fingerprint(expert.module for expert in self.experts)

    def condition_shapes(self, request: ResolvedRequest) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
        """Return the shapes of a request's encoded pictures: none, unless a model family overrides this."""
        return ()

    def encode_conditions(
        self,
        request: ResolvedRequest,  # noqa: ARG002
        pixels: Pixels,  # noqa: ARG002
        told: Callable[[int], None] = untold,  # noqa: ARG002
    ) -> tuple[Tensor, ...]:
        """Encode a request's pictures: none, unless a model family overrides this."""
        return ()

    def conditions(self, request: ResolvedRequest, encoded: tuple[Tensor, ...]) -> Conditions:  # noqa: ARG002
        """Return the effect of a request's pictures: none, unless a model family overrides this."""
        return NoConditions(self)

    def scheduler(self, request: ResolvedRequest) -> Scheduler:
        """Return a new scheduler, set to a request's denoising steps; see `schedulers.scheduler_for`.

        Each video needs one of its own, because a scheduler keeps state from step to step.
        """
        own = self.prepared(scheduler_for(request, self._pipeline.scheduler))
        self.schedule(own, request.num_inference_steps, self.device, request.sigmas)
        return own

    def prepared(self, scheduler: Scheduler) -> Scheduler:
        """Return the scheduler to denoise with: `scheduler` itself, unless a model family overrides this.

        scheduler: a new one of the class and the shift that the request asks for.
        """
        return scheduler

    def expert_at(self, timestep: Tensor) -> int:  # noqa: ARG002
        """Return the index of the expert (one of the model's transformers) to use at a timestep.

        It is 0, unless a model family overrides this method.
        """
        return 0

    def model_timestep(self, timestep: Tensor, latents: Tensor) -> Tensor:
        """Return the timestep as the transformer takes it: repeated for every video of the batch, [B]."""
        return timestep.expand(len(latents))
