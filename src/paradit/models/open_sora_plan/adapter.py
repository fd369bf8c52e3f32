"""Adapter for a loaded Open-Sora-Plan v1.3 model, split into the parts that each stage needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import MT5EncoderModel, PreTrainedTokenizerBase

from paradit.config.requests import ResolvedRequest, latent_shape
from paradit.models.common.latent_blocks import LatentBlocks
from paradit.models.common.model import PipelineModel
from paradit.models.common.seeded import seeded
from paradit.models.open_sora_plan.conditions import FromNoise, GivenFrames, black_between
from paradit.models.open_sora_plan.decoder import WfVaeDecoder
from paradit.models.open_sora_plan.encoder import encoded
from paradit.models.open_sora_plan.module import OpenSoraT2V_v1_3
from paradit.models.open_sora_plan.scheduler import VariancePreserving
from paradit.models.open_sora_plan.transformer import OpenSoraPlanTransformer
from paradit.models.open_sora_plan.wf_vae import WFVAEModel
from paradit.models.protocol import Conditions, Pixels, Prompt, Scheduler, untold


class OpenSoraPlanPipeline(DiffusionPipeline):
    """Components of an Open-Sora-Plan v1.3 model, which diffusers loads and saves."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: MT5EncoderModel,
        transformer: OpenSoraT2V_v1_3,
        vae: WFVAEModel,
        scheduler: EulerAncestralDiscreteScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
        )  # type: ignore[no-untyped-call]


class OpenSoraPlanModel(PipelineModel):
    """A loaded Open-Sora-Plan v1.3 model with the VideoModel interface."""

    PIPELINE, TRANSFORMER = OpenSoraPlanPipeline, OpenSoraPlanTransformer

    @staticmethod
    def schedule(
        scheduler: Scheduler,
        num_inference_steps: int,
        device: torch.device,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Set a scheduler's steps by their number, as the authors do."""
        assert sigmas is None, "this is not a flow model"
        scheduler.set_timesteps(num_inference_steps, device=device)
        scheduler.set_begin_index(0)

    def prepared(self, scheduler: Scheduler) -> Scheduler:
        """Return the scheduler to denoise with, for latents as the transformer reads them."""
        made: Scheduler = VariancePreserving.from_config(scheduler.config)
        return made

    @property
    def prompt_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that `encode_prompt` returns."""
        length = self.spec.text_length
        return (1, length, self.spec.text_encoder_dim), (1, length)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, guidance_scale: float | None = None) -> Prompt:  # noqa: ARG002
        """Return the encoded prompt: mT5's hidden states [1, T, text_dim] and their mask [1, T]."""
        tokens = self._pipeline.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.spec.text_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        encoder = self._pipeline.text_encoder
        embeds = encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return embeds.to(self.dtype), tokens.attention_mask.to(self.dtype)

    def condition_shapes(self, request: ResolvedRequest) -> tuple[tuple[int, ...], ...]:
        """Return the shape of a request's encoded pictures, a tensor in fp32; () if it has none."""
        return ((1, *latent_shape(request, self.spec)),) if request.image else ()

    @torch.no_grad()
    def encode_conditions(
        self, request: ResolvedRequest, pixels: Pixels, told: Callable[[int], None] = untold
    ) -> tuple[Tensor, ...]:
        """Encode a request's pictures as one video, drawn from the VAE's distribution by the seed."""
        if pixels.image is None:
            return ()
        frames, ratio = latent_shape(request, self.spec)[1], self.spec.vae.temporal_compression
        video = partial(black_between, pixels.image, pixels.last_image, frames, ratio)
        grid = self.spec.vae.encode_grid(request.height, request.width, request.vae_tile)
        return (encoded(self._pipeline.vae, video, grid, seeded("conditions", request.seed), told),)

    def conditions(self, request: ResolvedRequest, encoded: tuple[Tensor, ...]) -> Conditions:
        """Return the effect of a request's pictures, encoded by `encode_conditions`, on its denoising."""
        if not encoded:
            return FromNoise(self)
        (latents,), ratio = encoded, self.spec.vae.temporal_compression
        has_last = request.last_image is not None
        return GivenFrames(self, latents.to(self.device), ratio=ratio, has_last=has_last)

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> WfVaeDecoder:
        """Return a decoder of latents [1, C, F, h, w].

        park: whether the decoder's cache for a tile is kept in host memory, not on the GPU, while other tiles
        are decoded.
        """
        return WfVaeDecoder(self._pipeline.vae, VideoProcessor(), latents, park=park)
