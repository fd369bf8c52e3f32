"""Parts of CogVideoXPipeline: its transformer, cut at the joint attention, and its decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from paradit.attention.base import Site
from paradit.config.tiles import Tile
from paradit.models.common.blending import as_frames
from paradit.models.common.compile import heads
from paradit.models.common.joint import JointContext, JointLayout, JointModule, JointTokens, split
from paradit.models.common.latent_blocks import LatentBlocks, in_blocks
from paradit.models.common.model import PipelineModel
from paradit.models.protocol import Block, Frames, Scheduler


@dataclass(frozen=True, kw_only=True)
class Tokens(JointTokens):
    timestep: Tensor
    temb: Tensor


class JointBlock(Block[Tokens]):
    def __init__(self, block: CogVideoXBlock, site: Site) -> None:
        self.site, self._block = site, block

    def project(self, tokens: Tokens) -> Iterator[Tensor]:
        attn = self._block.attn1
        video, text, *_ = self._block.norm1(tokens.hidden_states, tokens.encoder_hidden_states, tokens.temb)
        both = torch.cat([video, text], dim=1)
        yield heads(attn.to_v(both), attn)
        yield attn.norm_k(heads(attn.to_k(both), attn))
        yield attn.norm_q(heads(attn.to_q(both), attn))

    def finish(self, tokens: Tokens, attended: Tensor) -> Tokens:
        block, length = self._block, tokens.hidden_states.shape[1]
        projection, dropout = block.attn1.to_out
        gates = block.norm1.linear(block.norm1.silu(tokens.temb))[:, None].chunk(6, dim=2)[2::3]
        video, text = split(dropout(projection(attended.flatten(2, 3))), length)
        video = tokens.hidden_states + gates[0] * video
        text = tokens.encoder_hidden_states + gates[1] * text
        normed, normed_text, *gates = block.norm2(video, text, tokens.temb)
        more, more_text = split(block.ff(torch.cat([normed, normed_text], dim=1)), length)
        video, text = video + gates[0] * more, text + gates[1] * more_text
        return replace(tokens, hidden_states=video, encoder_hidden_states=text)


class Transformer(JointModule[Tokens, JointContext]):
    LISTS = ("transformer_blocks",)
    context = staticmethod(JointContext)

    def cut(self) -> list[JointBlock]:
        parts = zip(self.module.transformer_blocks, self.layers.held, strict=True)
        return [JointBlock(block, Site(layer)) for block, layer in parts]

    def layout(self, latent_shape: tuple[int, int, int]) -> JointLayout:
        config, patch = self.module.config, self.module.config.patch_size
        grid = latent_shape[0], latent_shape[1] // patch, latent_shape[2] // patch
        cos = torch.ones(prod(grid), config.attention_head_dim, device=self.module.proj_out.weight.device)
        sin = torch.zeros_like(cos)
        if config.use_rotary_positional_embeddings:
            base = config.sample_width // patch, config.sample_height // patch
            region = get_resize_crop_region_for_grid(grid[1:], *base)
            size = config.attention_head_dim, region, grid[1:], grid[0]
            cos, sin = get_3d_rotary_pos_embed(*size, device=cos.device)
        return JointLayout.of(grid, cos, sin)

    def join(self, contexts: Sequence[JointContext]) -> JointContext:
        return JointContext(torch.cat([context.prompt_embeds for context in contexts]))

    def embed(self, latents: Tensor, timestep: Tensor, context: JointContext, layout: JointLayout) -> Tokens:
        joint = self.module.patch_embed(context.prompt_embeds, latents.transpose(1, 2))
        length = context.prompt_embeds.shape[1]
        return self.resume((joint[:, length:].contiguous(), joint[:, :length]), timestep, context, layout)

    def branch(self, tokens: Tokens, context: JointContext) -> Tokens:
        times = context.batch // len(tokens.hidden_states)
        text = self.module.patch_embed.text_proj(context.prompt_embeds)
        video, timestep = torch.cat([tokens.hidden_states] * times), tokens.timestep.repeat(times)
        return self.resume((video, text), timestep, context, tokens.layout)

    def resume(
        self, changing: Sequence[Tensor], timestep: Tensor, context: JointContext, layout: JointLayout
    ) -> Tokens:
        video, text = changing
        return Tokens(
            hidden_states=video,
            encoder_hidden_states=text,
            timestep=timestep,
            temb=self.module.time_embedding(self.module.time_proj(timestep).to(video.dtype)),
            layout=layout.with_text(context.prompt_embeds.shape[1]),
        )

    def head(self, tokens: Tokens) -> Tensor:
        module = self.module
        return module.proj_out(module.norm_out(module.norm_final(tokens.hidden_states), temb=tokens.temb))

    def unpatchify(self, values: Tensor, layout: JointLayout) -> Tensor:
        patch = self.module.config.patch_size
        x = values.reshape(len(values), *layout.grid, -1, patch, patch)
        return x.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


class Decoder:
    """Decoder that decodes a video in one piece."""

    num_pieces = 1

    def __init__(self, pipeline: CogVideoXPipeline, latents: Tensor | LatentBlocks) -> None:
        self._vae, self._processor, self._latents = pipeline.vae, pipeline.video_processor, in_blocks(latents)
        self.scale, self._ratio = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
        frames = latents.shape[2]
        self._lengths = [self._ratio if frames % 2 == 0 else 1] + [self._ratio] * (frames - 1)
        """Number of frames of each latent frame; if their number is odd, the first is a single frame."""

    def piece_shape(self, index: int, tile: Tile) -> tuple[int, ...]:  # noqa: ARG002
        return 1, 3, sum(self._lengths), tile.rows.size * self.scale, tile.columns.size * self.scale

    @torch.no_grad()
    def pieces(self, tile: Tile) -> Iterator[Tensor]:
        frames = [self._latents.frame(index) for index in range(self._latents.shape[2])]
        rows, columns = (slice(span.start, span.stop) for span in (tile.rows, tile.columns))
        z = torch.cat(frames, dim=2)[..., rows, columns].to(self._vae.device, self._vae.dtype)
        yield self._vae.decode(1 / self._vae.config.scaling_factor * z).sample

    def frames(self, pictures: Iterable[Tensor]) -> Iterator[Frames]:
        for picture in pictures:
            yield from (as_frames(self._processor, x) for x in torch.split(picture, self._lengths, dim=2))


class CogVideoXModel(PipelineModel):
    PIPELINE, TRANSFORMER = CogVideoXPipeline, Transformer

    @staticmethod
    def schedule(scheduler: Scheduler, num_inference_steps: int, device: torch.device, *_: object) -> None:
        scheduler.set_timesteps(num_inference_steps, device=device)

    def decoder(self, latents: Tensor | LatentBlocks, *, park: bool = False) -> Decoder:  # noqa: ARG002
        return Decoder(self._pipeline, latents)
