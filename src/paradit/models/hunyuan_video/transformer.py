"""HunyuanVideoTransformer3DModel split at its joint attention; each part calls the module's submodules.

Text and video attend to each other: the text's tokens follow the video's, and every rank holds all of the
text's. The first blocks ("double") have separate weights for the text; the others ("single") use the same
weights for both.

A prompt's padding is cut off before anything is computed. diffusers' module masks the padding instead, in
every attention and in the token refiner's mean, so that it never affects the video. For a prompt without
padding, the result equals that of the module's forward bit for bit; for one with padding, it differs by
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformer3DModel,
    HunyuanVideoTransformerBlock,
)
from torch import Tensor
from torch.nn import LayerNorm

from paradit.attention.base import Site
from paradit.config.options import decode_known
from paradit.models.common.compile import heads, maybe_compiled, of_class
from paradit.models.common.joint import JointContext, JointLayout, JointModule, JointTokens, split
from paradit.models.common.stored_weights import StoredWeights
from paradit.models.hunyuan_video.spec import TransformerConfig
from paradit.models.protocol import Block

AdaLayerNorm = AdaLayerNormZero | AdaLayerNormZeroSingle


@dataclass(frozen=True, kw_only=True)
class HunyuanContext(JointContext):
    """Batch of B encoded prompts of equal length, without padding, in the form that the transformer reads."""

    pooled_projections: Tensor
    """Pooled output of CLIP for each prompt, [B, pooled_projection_dim]."""
    guidance: Tensor | None
    """Guidance scales [B], times a thousand, for models that read them; None for others."""


@dataclass(frozen=True, kw_only=True)
class HunyuanTokens(JointTokens):
    """Tokens of a video and its text on their way through the transformer blocks, with all else they read."""

    temb: Tensor
    """Embedding [B, width] of the timestep, the guidance scale and the pooled text."""
    timestep: Tensor
    """Timesteps [B] that were embedded with the tokens."""
    context: HunyuanContext


class DoubleBlock(Block[HunyuanTokens]):
    """A HunyuanVideoTransformerBlock, split into the parts before and after its attention.

    Video and text have separate weights. The block is for inference only: it changes outputs of submodules in
    place, to save time and memory.
    """

    def __init__(self, block: HunyuanVideoTransformerBlock, site: Site, *, compile: bool) -> None:
        self.site, self._block = site, block
        self._normed = maybe_compiled(_normed, compile)
        self._value = maybe_compiled(_double_value, compile)
        self._key = maybe_compiled(_double_key, compile)
        self._query = maybe_compiled(_double_query, compile)
        self._finish = maybe_compiled(_double_finish, compile)

    def project(self, tokens: HunyuanTokens) -> Iterator[Tensor]:
        """Yield attention's values, then keys, then queries, of video and text: each [B, S + T, H, D].

        Keys and queries are normed, but RoPE is not yet applied.
        """
        block, attn = self._block, self._block.attn
        video = self._normed(block.norm1, tokens.hidden_states, tokens.temb, 6)
        text = self._normed(block.norm1_context, tokens.encoder_hidden_states, tokens.temb, 6)
        yield self._value(attn, video, text)
        yield self._key(attn, video, text)
        yield self._query(attn, video, text)

    def finish(self, tokens: HunyuanTokens, attended: Tensor) -> HunyuanTokens:
        """Return the block's output tokens, given the output of its attention, [B, S + T, H, D]."""
        both = tokens.hidden_states, tokens.encoder_hidden_states
        video, text = self._finish(self._block, both, tokens.temb, attended)
        return replace(tokens, hidden_states=video, encoder_hidden_states=text)


class SingleBlock(Block[HunyuanTokens]):
    """A HunyuanVideoSingleTransformerBlock, split into the parts before and after its attention.

    Video and text share one set of weights.

    Feed-forward and attention read the same normed tokens. To save memory, `finish` computes the norm again
    and runs the feed-forward after attention; diffusers' block keeps the feed-forward's inner activation in
    memory during attention.
    """

    def __init__(self, block: HunyuanVideoSingleTransformerBlock, site: Site, *, compile: bool) -> None:
        self.site, self._block = site, block
        self._both_normed = maybe_compiled(_both_normed, compile)
        self._value = maybe_compiled(_single_value, compile)
        self._key = maybe_compiled(_single_key, compile)
        self._query = maybe_compiled(_single_query, compile)
        self._finish = maybe_compiled(_single_finish, compile)

    def project(self, tokens: HunyuanTokens) -> Iterator[Tensor]:
        """Yield attention's values, then keys, then queries, of video and text: each [B, S + T, H, D].

        Keys and queries are normed, but RoPE is not yet applied.
        """
        attn = self._block.attn
        x = self._both_normed(
            self._block.norm, tokens.hidden_states, tokens.encoder_hidden_states, tokens.temb
        )
        yield self._value(attn, x)
        yield self._key(attn, x)
        yield self._query(attn, x)

    def finish(self, tokens: HunyuanTokens, attended: Tensor) -> HunyuanTokens:
        """Return the block's output tokens, given the output of its attention, [B, S + T, H, D]."""
        both = tokens.hidden_states, tokens.encoder_hidden_states
        video, text = self._finish(self._block, both, tokens.temb, attended)
        return replace(tokens, hidden_states=video, encoder_hidden_states=text)


class HunyuanVideoTransformer(JointModule[HunyuanTokens, HunyuanContext]):
    """A HunyuanVideoTransformer3DModel split into embedding, transformer blocks and head.

    Raises InputError for a module with an unsupported configuration, such as one that takes an image.
    """

    LISTS = ("transformer_blocks", "single_transformer_blocks")
    module: HunyuanVideoTransformer3DModel

    def __init__(
        self,
        module: HunyuanVideoTransformer3DModel,
        *,
        compile: bool = False,
        stored: StoredWeights | None = None,
    ) -> None:
        decode_known(TransformerConfig, module.config)
        super().__init__(module, compile=compile, stored=stored)

    def cut(self) -> list[Block[HunyuanTokens]]:
        """Return the layers that this rank holds, each wrapped as a `Block`, double blocks first."""
        double = of_class(HunyuanVideoTransformerBlock, self.module.transformer_blocks)
        single = of_class(HunyuanVideoSingleTransformerBlock, self.module.single_transformer_blocks)
        sites, first = list(map(Site, self.layers.held)), len(double)
        return [
            *(DoubleBlock(*part, compile=self._compile) for part in zip(double, sites[:first], strict=True)),
            *(SingleBlock(*part, compile=self._compile) for part in zip(single, sites[first:], strict=True)),
        ]

    def layout(self, latent_shape: tuple[int, int, int]) -> JointLayout:
        """Return the layout (positions and RoPE rotations) of the tokens of latents (F, H, W), without text.

        Called once per request.
        """
        config, device = self.module.config, self.module.proj_out.weight.device
        frames, height, width = latent_shape
        grid = frames // config["patch_size_t"], height // config["patch_size"], width // config["patch_size"]
        # The module makes its tables from the shape of the latents alone.
        cos, sin = self.module.rope(torch.empty(1, 1, *latent_shape, device=device))
        return JointLayout.of(grid, cos, sin)

    def context(
        self,
        prompt_embeds: Tensor,
        prompt_attention_mask: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> HunyuanContext:
        """Convert B encoded prompts to the form that the transformer reads, with their padding removed.

        The arguments have the shapes [B, T, text_embed_dim], [B, T], [B, pooled_projection_dim] and [B].
        Raises ValueError unless the mask keeps only the first tokens of each prompt, and equally many of
        each.
        """
        mask = prompt_attention_mask.bool()
        lengths = mask.sum(dim=1).tolist()
        length = lengths[0]
        if length == 0 or set(lengths) != {length} or not mask[:, :length].all():
            raise ValueError(
                f"prompts of {', '.join(map(str, lengths))} tokens: those of a batch must have the same "
                "number, at least one, and their padding after it"
            )
        return HunyuanContext(
            # Contiguous, because the rounding of a linear depends on the strides.
            prompt_embeds=prompt_embeds[:, :length].contiguous(),
            pooled_projections=pooled_projections,
            guidance=guidance,
        )

    def join(self, contexts: Sequence[HunyuanContext]) -> HunyuanContext:
        """Merge several batches of encoded prompts, all of one length, into one batch."""
        guidance = [context.guidance for context in contexts if context.guidance is not None]
        return HunyuanContext(
            prompt_embeds=torch.cat([context.prompt_embeds for context in contexts]),
            pooled_projections=torch.cat([context.pooled_projections for context in contexts]),
            guidance=torch.cat(guidance) if guidance else None,
        )

    def embed(
        self, latents: Tensor, timestep: Tensor, context: HunyuanContext, layout: JointLayout
    ) -> HunyuanTokens:
        """Embed latents [B, C, F, H, W] at timestep [B] as tokens, in the dtype of the prompt embeddings."""
        hidden_states = self.module.x_embedder(latents).contiguous()
        return self._with_text(hidden_states, timestep, context, layout)

    def branch(self, tokens: HunyuanTokens, context: HunyuanContext) -> HunyuanTokens:
        """Return the tokens for another guidance branch.

        tokens: the tokens as embedded for one branch. context: the other branch's encoded prompts. The
        video's tokens are repeated, once for each of these prompts.
        """
        # The tokens were embedded with these prompts.
        if context is tokens.context:
            return tokens
        return self._with_text(tokens.hidden_states, tokens.timestep, context, tokens.layout)

    def _with_text(
        self, hidden_states: Tensor, timestep: Tensor, context: HunyuanContext, layout: JointLayout
    ) -> HunyuanTokens:
        module, times = self.module, context.batch // len(hidden_states)
        if times > 1:
            hidden_states, timestep = torch.cat([hidden_states] * times), timestep.repeat(times)
        temb, _ = module.time_text_embed(timestep, context.pooled_projections, context.guidance)
        # The refiner reads the timestep, so the text is embedded in every step. It gets a mask, though of
        # ones, because it averages in fp32 only with a mask.
        ones = torch.ones(context.prompt_embeds.shape[:2], device=hidden_states.device)
        text = module.context_embedder(context.prompt_embeds, timestep, ones)
        return HunyuanTokens(
            hidden_states=hidden_states,
            encoder_hidden_states=text,
            temb=temb,
            timestep=timestep,
            context=context,
            layout=layout.with_text(text.shape[1]),
        )

    def resume(
        self, changing: Sequence[Tensor], timestep: Tensor, context: HunyuanContext, layout: JointLayout
    ) -> HunyuanTokens:
        """Rebuild tokens, the output of another rank's blocks, from the tensors that the other rank sent.

        changing: these tensors (`Tokens.changing`). timestep, context, layout: the arguments that the tokens
        were embedded with.
        """
        hidden_states, text = changing
        temb, _ = self.module.time_text_embed(timestep, context.pooled_projections, context.guidance)
        return HunyuanTokens(
            hidden_states=hidden_states,
            encoder_hidden_states=text,
            temb=temb,
            timestep=timestep,
            context=context,
            layout=layout.with_text(text.shape[1]),
        )

    def head(self, tokens: HunyuanTokens) -> Tensor:
        """Return the output of the transformer's head for each video token, [B, S, patch values].

        A rank may call this for only its own tokens.
        """
        values: Tensor = self.module.proj_out(self.module.norm_out(tokens.hidden_states, tokens.temb))
        return values

    def unpatchify(self, values: Tensor, layout: JointLayout) -> Tensor:
        """Assemble the prediction [B, C, F, H, W] from the head's output for all tokens.

        The head's output is [B, S, patch values].
        """
        config = self.module.config
        patch = config["patch_size_t"], config["patch_size"], config["patch_size"]
        x = values.reshape(len(values), *layout.grid, -1, *patch)
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # [B, C, F, pf, H, ph, W, pw]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _modulation(norm: AdaLayerNorm, temb: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return the shifts, scales and gates of an AdaLayerNormZero, each [B, 1, width].

    They are computed again after attention, not kept, because one row per video costs little.
    """
    rows: Tensor = norm.linear(norm.silu(temb))
    return rows[:, None].chunk(count, dim=2)


def _normed(norm: AdaLayerNorm, x: Tensor, temb: Tensor, count: int) -> Tensor:
    shift, scale, *_ = _modulation(norm, temb, count)
    normed: Tensor = norm.norm(x)
    return normed.mul_(1 + scale).add_(shift)


def _double_value(attn: Attention, video: Tensor, text: Tensor) -> Tensor:
    return torch.cat([heads(attn.to_v(video), attn), heads(attn.add_v_proj(text), attn)], dim=1)


def _double_key(attn: Attention, video: Tensor, text: Tensor) -> Tensor:
    key = attn.get_submodule("norm_k")(heads(attn.to_k(video), attn))
    return torch.cat([key, attn.norm_added_k(heads(attn.add_k_proj(text), attn))], dim=1)


def _double_query(attn: Attention, video: Tensor, text: Tensor) -> Tensor:
    query = attn.get_submodule("norm_q")(heads(attn.to_q(video), attn))
    return torch.cat([query, attn.norm_added_q(heads(attn.add_q_proj(text), attn))], dim=1)


def _double_finish(
    block: HunyuanVideoTransformerBlock, both: tuple[Tensor, Tensor], temb: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor]:
    video, text = split(attended.flatten(2, 3), both[0].shape[1])
    projection, dropout = block.attn.to_out
    _, _, *modulation = _modulation(block.norm1, temb, 6)
    video = _after(both[0], dropout(projection(video)), modulation, block.norm2, block.ff)
    _, _, *modulation = _modulation(block.norm1_context, temb, 6)
    text = _after(both[1], block.attn.to_add_out(text), modulation, block.norm2_context, block.ff_context)
    return video, text


def _after(
    x: Tensor, attended: Tensor, modulation: Sequence[Tensor], norm: LayerNorm, feed_forward: FeedForward
) -> Tensor:
    """Run the part of a double block that follows attention, for the video's or for the text's tokens.

    This part consists of residual, norm and feed-forward. Returns the block's output tokens.
    """
    gate, shift, scale, ffn_gate = modulation
    x = attended.mul_(gate).add_(x)
    out: Tensor = feed_forward(norm(x).mul_(1 + scale).add_(shift))
    return out.mul_(ffn_gate).add_(x)


def _both_normed(norm: AdaLayerNorm, video: Tensor, text: Tensor, temb: Tensor) -> Tensor:
    return _normed(norm, torch.cat([video, text], dim=1), temb, 3)


def _single_value(attn: Attention, x: Tensor) -> Tensor:
    return heads(attn.to_v(x), attn)


def _single_key(attn: Attention, x: Tensor) -> Tensor:
    key: Tensor = attn.get_submodule("norm_k")(heads(attn.to_k(x), attn))
    return key


def _single_query(attn: Attention, x: Tensor) -> Tensor:
    query: Tensor = attn.get_submodule("norm_q")(heads(attn.to_q(x), attn))
    return query


def _single_finish(
    block: HunyuanVideoSingleTransformerBlock, both: tuple[Tensor, Tensor], temb: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor]:
    _, _, gate = _modulation(block.norm, temb, 3)
    inner = block.act_mlp(block.proj_mlp(_both_normed(block.norm, *both, temb)))
    out = block.proj_out(torch.cat([attended.flatten(2, 3), inner], dim=2)).mul_(gate)
    video, text = split(out, both[0].shape[1])
    return video.add_(both[0]), text.add_(both[1])
