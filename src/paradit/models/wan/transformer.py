"""WanTransformer3DModel split at its self-attention; each part calls the module's own submodules.

The result equals the module's `forward` bit for bit: the same operations, in the same order, on the same
values. What is constant over the steps of a request (RoPE tables, the text's keys and values) is computed
once, by `layout` and `context`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanTransformer3DModel,
    WanTransformerBlock,
)
from torch import Tensor

from paradit.attention.base import Kernel, Layout, Site
from paradit.attention.local_attention import sdpa
from paradit.attention.rope import RopeTables, grid_positions
from paradit.models.common.compile import heads, maybe_compiled, of_class
from paradit.models.common.split_module import SplitModule
from paradit.models.common.stored_weights import StoredWeights
from paradit.models.protocol import Block, Tokens
from paradit.models.wan.modulation import Modulation, modulated, modulation, of_tokens


@dataclass(frozen=True, kw_only=True)
class WanLayout(Layout):
    """Layout (positions and RoPE rotations) of a video's tokens.

    Text tokens are not included, because only cross-attention reads them.
    """

    grid: tuple[int, int, int]
    """Number of tokens along (frames, height, width), of the whole video."""
    frame: Tensor
    """Index in `grid` of each token's frame: [S]."""

    def shard(self, start: int, stop: int) -> Self:
        return replace(super().shard(start, stop), frame=self.frame[start:stop])


@dataclass(frozen=True, kw_only=True)
class WanContext:
    """Encoded prompts as keys and values [B, T, H, D], which the cross-attention of each layer reads."""

    text: tuple[tuple[Tensor, Tensor], ...]
    image: tuple[tuple[Tensor, Tensor], ...] | None = None

    @property
    def batch(self) -> int:
        """Number of prompts in the batch."""
        return len(self.text[0][0])

    def part(self, start: int, stop: int) -> WanContext:
        """Return prompts `start` to `stop` (excluded) of the batch, as views."""

        def views(layers: tuple[tuple[Tensor, Tensor], ...]) -> tuple[tuple[Tensor, Tensor], ...]:
            return tuple((key[start:stop], value[start:stop]) for key, value in layers)

        return WanContext(text=views(self.text), image=None if self.image is None else views(self.image))


@dataclass(frozen=True, kw_only=True)
class WanTokens(Tokens):
    """Tokens of a video on their way through the transformer blocks, with all else that a block reads."""

    layout: WanLayout
    modulation: Modulation
    context: WanContext

    def shard(self, start: int, stop: int) -> Self:
        return replace(super().shard(start, stop), modulation=self.modulation.shard(start, stop))


class WanBlock(Block[WanTokens]):
    """A WanTransformerBlock, split into the parts before and after its self-attention.

    For inference only: outputs of submodules are changed in place, to save time and memory.
    """

    def __init__(
        self, block: WanTransformerBlock, site: Site, place: int, *, compile: bool, kernel: Kernel
    ) -> None:
        """Split a WanTransformerBlock into the parts before and after its self-attention.

        place: the index of this transformer block among those that the rank holds. kernel: the function that
        computes cross-attention.
        """
        self.site = site
        self._block, self._place = block, place
        self._kernel = kernel
        self._normed = maybe_compiled(_normed, compile)
        self._value = maybe_compiled(_value, compile)
        self._key = maybe_compiled(_key, compile)
        self._query = maybe_compiled(_query, compile)
        self._finish = maybe_compiled(_finish, compile)

    def project(self, tokens: WanTokens) -> Iterator[Tensor]:
        """Yield self-attention's values, then normed keys and queries without RoPE, each [B, S, H, D]."""
        block, attn = self._block, self._block.attn1
        rows, index = tokens.modulation.rows, tokens.modulation.index
        x = self._normed(block, tokens.hidden_states, rows, index)
        if attn.fused_projections:
            # One product makes all three, so the values cannot be yielded any earlier.
            query, key, value = attn.to_qkv(x).chunk(3, dim=-1)
            yield heads(value, attn)
            yield heads(attn.norm_k(key), attn)
            yield heads(attn.norm_q(query), attn)
        else:
            yield self._value(attn, x)
            yield self._key(attn, x)
            yield self._query(attn, x)

    def finish(self, tokens: WanTokens, attended: Tensor) -> WanTokens:
        """Return the block's output tokens, given the output of its self-attention, [B, S, H, D]."""
        x, read = tokens.hidden_states, self._read(tokens)
        rows, index = tokens.modulation.rows, tokens.modulation.index
        x = self._finish(self._block, x, rows, index, attended, read=read, kernel=self._kernel)
        return replace(tokens, hidden_states=x)

    def _read(self, tokens: WanTokens) -> list[tuple[Tensor, Tensor]]:
        """Return the keys and values that this layer's cross-attention reads: the text's, and any image's."""
        return [part[self._place] for part in (tokens.context.text, tokens.context.image) if part is not None]

    def text_keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross-attention's keys and values [B, T, H, D] of an embedded text [B, T, width]."""
        attn = self._block.attn2
        if attn.fused_projections:
            key, value = attn.to_kv(text).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text), attn.to_v(text)
        return heads(attn.norm_k(key), attn), heads(value, attn)

    def image_keys_values(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross-attention's keys and values [B, T, H, D] of an embedded image [B, T, width].

        Only image-to-video models have these.
        """
        attn = self._block.attn2
        if attn.fused_projections:
            key, value = attn.to_added_kv(image).chunk(2, dim=-1)
        else:
            key, value = attn.get_submodule("add_k_proj")(image), attn.get_submodule("add_v_proj")(image)
        return heads(attn.norm_added_k(key), attn), heads(value, attn)


class WanTransformer(SplitModule[WanTokens, WanContext, WanLayout]):
    """A WanTransformer3DModel split into embedding, transformer blocks and head.

    Each block is split into the parts before and after its self-attention.
    """

    LISTS = ("blocks",)
    module: WanTransformer3DModel
    blocks: Sequence[WanBlock]

    def __init__(
        self,
        module: WanTransformer3DModel,
        *,
        compile: bool = False,
        stored: StoredWeights | None = None,
        kernel: Kernel = sdpa,
    ) -> None:
        """Split a WanTransformer3DModel into embedding, transformer blocks and head.

        kernel: the function that computes cross-attention. compile: whether `torch.compile` compiles what
        runs before and after attention. stored: reader of the weights on disk, for layers that are not in
        memory; None: all layers are in memory.
        """
        self._kernel = kernel
        super().__init__(module, compile=compile, stored=stored)

    def cut(self) -> list[WanBlock]:
        blocks = of_class(WanTransformerBlock, self.module.blocks)
        return [
            WanBlock(block, Site(layer), place, compile=self._compile, kernel=self._kernel)
            for place, (layer, block) in enumerate(zip(self.layers.held, blocks, strict=True))
        ]

    def layout(self, latent_shape: tuple[int, int, int]) -> WanLayout:
        """Return the layout (positions and RoPE rotations) of the tokens of latents (F, H, W).

        Called once per request.
        """
        frames, height, width = (
            size // patch for size, patch in zip(latent_shape, self.module.config["patch_size"], strict=True)
        )
        tables = self.rope_tables()
        positions = grid_positions((frames, height, width), device=tables.cos[0].device)
        return WanLayout(grid=(frames, height, width), frame=positions[:, 0], rope=tables.at(positions))

    def rope_tables(self) -> RopeTables:
        """Convert the module's rotary tables, which cover every position, to `RopeTables`.

        Both hold each angle twice, once for each channel of a pair.
        """
        rope = self.module.rope
        channels = [rope.t_dim, rope.h_dim, rope.w_dim]
        cos, sin = rope.get_buffer("freqs_cos"), rope.get_buffer("freqs_sin").clone()
        # `RopeTables` expects sines that are negated for the first channel of each pair.
        sin[:, 0::2].neg_()
        return RopeTables(
            cos=cos.split_with_sizes(channels, dim=1), sin=sin.split_with_sizes(channels, dim=1)
        )

    def context(self, prompt_embeds: Tensor, image_embeds: Tensor | None = None) -> WanContext:
        """Convert B encoded prompts [B, T, text_dim] to the keys and values that cross-attention reads.

        Called once per prompt. Raises ValueError if a model that attends to an image gets no image.
        """
        embedder = self.module.condition_embedder
        if embedder.image_embedder is not None and image_embeds is None:
            raise ValueError("this transformer attends to an image: image_embeds is needed")
        text, image = embedder.text_embedder(prompt_embeds), None
        if image_embeds is not None:
            image = embedder.get_submodule("image_embedder")(image_embeds)
            # Views of one tensor, as in the module, because the rounding of a linear depends on the strides.
            both = torch.cat([image, text], dim=1)
            image, text = both[:, : image.shape[1]], both[:, image.shape[1] :]
        return WanContext(
            text=tuple(block.text_keys_values(text) for block in self.blocks),
            image=None if image is None else tuple(block.image_keys_values(image) for block in self.blocks),
        )

    def join(self, contexts: Sequence[WanContext]) -> WanContext:
        """Merge several batches of encoded prompts, in the form that `context` returns, into one batch."""

        def joined(layers: Sequence[tuple[tuple[Tensor, Tensor], ...]]) -> tuple[tuple[Tensor, Tensor], ...]:
            return tuple(
                (torch.cat([key for key, _ in layer]), torch.cat([value for _, value in layer]))
                for layer in zip(*layers, strict=True)
            )

        images = [context.image for context in contexts if context.image is not None]
        return WanContext(
            text=joined([context.text for context in contexts]), image=joined(images) if images else None
        )

    def separate(self, joined: WanContext, contexts: Sequence[WanContext]) -> list[WanContext]:
        """Return `contexts` as views of `joined`, into which `join` has copied them."""
        found, stop = [], 0
        for context in contexts:
            start, stop = stop, stop + context.batch
            found.append(joined.part(start, stop))
        return found

    def embed(self, latents: Tensor, timestep: Tensor, context: WanContext, layout: WanLayout) -> WanTokens:
        """Embed latents [B, C, F, H, W] as tokens. The latents must have the dtype of the prompt embeddings.

        timestep: the timesteps [B], or [B, F] if each frame has its own, or [B, S] if each token has.
        """
        hidden_states = self.module.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()
        time = self._time(timestep, latents.dtype, layout)
        return WanTokens(hidden_states=hidden_states, modulation=time, context=context, layout=layout)

    def branch(self, tokens: WanTokens, context: WanContext) -> WanTokens:
        """Return the tokens for another guidance branch.

        tokens: the tokens as embedded for one branch. context: the other branch's encoded prompts. The
        video's tokens are repeated, once for each of these prompts.
        """
        times = context.batch // len(tokens.hidden_states)
        if times == 1:
            return replace(tokens, context=context)
        return replace(
            tokens,
            context=context,
            hidden_states=torch.cat([tokens.hidden_states] * times),
            modulation=tokens.modulation.repeated(times),
        )

    def resume(
        self, changing: Sequence[Tensor], timestep: Tensor, context: WanContext, layout: WanLayout
    ) -> WanTokens:
        """Rebuild tokens, the output of another rank's blocks, from the tensors that the other rank sent.

        changing: these tensors (`Tokens.changing`). timestep, context, layout: the arguments that the tokens
        were embedded with.
        """
        (hidden_states,) = changing
        time = self._time(timestep, hidden_states.dtype, layout)
        return WanTokens(hidden_states=hidden_states, modulation=time, context=context, layout=layout)

    def changing_shapes(self, context: WanContext, layout: WanLayout) -> tuple[tuple[int, ...]]:
        """Return the shape of the only tensor that transformer blocks change: hidden states [B, S, width]."""
        config, num_tokens = self.module.config, len(layout.rope.positions)
        return ((context.batch, num_tokens, config["num_attention_heads"] * config["attention_head_dim"]),)

    def _time(self, timestep: Tensor, dtype: torch.dtype, layout: WanLayout) -> Modulation:
        embedder = self.module.condition_embedder
        return modulation(embedder, timestep, dtype, frame=layout.frame, grid=layout.grid)

    def head(self, tokens: WanTokens) -> Tensor:
        """Return the output of the transformer's head for each token, [B, S, patch values].

        A rank may call this for only its own tokens.
        """
        module, x = self.module, tokens.hidden_states
        shift, scale = (module.scale_shift_table + tokens.modulation.temb.unsqueeze(1)).unbind(1)
        x = modulated(module.norm_out(x.float()), shift, scale, tokens.modulation.index).type_as(x)
        values: Tensor = module.proj_out(x)
        return values

    def unpatchify(self, values: Tensor, layout: WanLayout) -> Tensor:
        """Assemble the prediction [B, C, F, H, W] from the head's output for all tokens.

        The head's output is [B, S, patch values].
        """
        x = values.reshape(len(values), *layout.grid, *self.module.config["patch_size"], -1)
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, C, F, pf, H, ph, W, pw]
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _normed(block: WanTransformerBlock, x: Tensor, rows: Tensor, index: Tensor | None) -> Tensor:
    """Return the normed and modulated tokens from which q, k and v are projected.

    rows, index: see `Modulation`.
    """
    shift, scale, *_ = (block.scale_shift_table + rows).unbind(1)
    return modulated(block.norm1(x.float()), shift, scale, index).type_as(x)


def _value(attn: WanAttention, x: Tensor) -> Tensor:
    return heads(attn.to_v(x), attn)


def _key(attn: WanAttention, x: Tensor) -> Tensor:
    return heads(attn.norm_k(attn.to_k(x)), attn)


def _query(attn: WanAttention, x: Tensor) -> Tensor:
    return heads(attn.norm_q(attn.to_q(x)), attn)


def _finish(
    block: WanTransformerBlock,
    x: Tensor,
    rows: Tensor,
    index: Tensor | None,
    attended: Tensor,
    *,
    read: list[tuple[Tensor, Tensor]],
    kernel: Kernel,
) -> Tensor:
    """Run what follows a block's self-attention, and return the block's output tokens [B, S, width].

    rows, index: see `Modulation`. read: the keys and values [B, T, H, D] of the text and of any image, for
    cross-attention.
    """
    _, _, gate, shift, scale, ffn_gate = (block.scale_shift_table + rows).unbind(1)
    # As in diffusers' block, sums are computed in fp32 and then rounded to the dtype of the tokens.
    x = _out(attended, block.attn1).float().mul_(of_tokens(gate, index)).add_(x).type_as(x)

    normed = block.norm2(x.float()).type_as(x)
    x = _cross_attention(block.attn2, normed, read, kernel).add_(x)

    normed = modulated(block.norm3(x.float()), shift, scale, index).type_as(x)
    done: Tensor = block.ffn(normed).float().mul_(of_tokens(ffn_gate, index)).add_(x).type_as(x)
    return done


def _cross_attention(
    attn: WanAttention, x: Tensor, read: list[tuple[Tensor, Tensor]], kernel: Kernel
) -> Tensor:
    query = heads(attn.norm_q(attn.to_q(x)), attn)
    out = kernel(query, *read[0])
    # As in WanAttnProcessor, text and image each have a softmax of their own.
    for keys_values in read[1:]:
        out = out + kernel(query, *keys_values)
    return _out(out, attn)


def _out(attended: Tensor, attn: WanAttention) -> Tensor:
    # to_out is the projection and its dropout.
    projection, dropout = attn.to_out
    out: Tensor = dropout(projection(attended.flatten(2, 3)))
    return out
