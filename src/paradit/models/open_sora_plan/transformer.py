"""Transformers of Open-Sora-Plan v1.3 split at their self-attention.

Most layers are sparse ("skiparse"): their tokens attend only within groups, by a pattern that alternates from
layer to layer. A prompt's padding is cut off before anything is computed; the authors mask it instead, so
results differ by rounding. What is constant over the steps of a request (RoPE rotations, the text's keys
and values) is computed once, by `layout` and `context`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from paradit.attention.base import Layout, Site
from paradit.attention.local_attention import sdpa
from paradit.attention.rope import RopeTables, grid_positions
from paradit.models.common.compile import heads, maybe_compiled, of_class
from paradit.models.common.split_module import SplitModule
from paradit.models.open_sora_plan.module import Attention, OpenSoraT2V_v1_3, TransformerBlock
from paradit.models.open_sora_plan.spec import transformer_spec
from paradit.models.protocol import Block, Tokens

ROPE_BASE = 10000.0
"""Base of the frequencies of RoPE."""

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, [1, T, H, D] each, of a prompt of T tokens."""


@dataclass(frozen=True, kw_only=True)
class OpenSoraPlanLayout(Layout):
    """Layout (positions and RoPE rotations) of a video's tokens, without the text's."""

    grid: tuple[int, int, int]
    """Number of tokens along (frames, height, width), of the whole video."""


@dataclass(frozen=True, kw_only=True)
class OpenSoraPlanContext:
    """Encoded prompts, each as keys and values that the cross-attention of each layer reads."""

    prompts: tuple[tuple[KeysValues, ...], ...]
    """For each prompt, which may differ in length, the keys and values of every layer."""

    @property
    def batch(self) -> int:
        """Number of prompts in the batch."""
        return len(self.prompts)


@dataclass(frozen=True, kw_only=True)
class OpenSoraPlanTokens(Tokens):
    """Tokens of a video on their way through the transformer blocks, with all else that a block reads."""

    layout: OpenSoraPlanLayout
    context: OpenSoraPlanContext
    temb: Tensor
    """Embedded timesteps [B, width], for the head."""
    rows: Tensor
    """Shifts, scales and gates for the transformer blocks, [B, 6, width]."""


class OpenSoraPlanBlock(Block[OpenSoraPlanTokens]):
    """A transformer block, split into the parts before and after its self-attention.

    For inference only: outputs of submodules are changed in place, to save time and memory.
    """

    def __init__(self, block: TransformerBlock, site: Site, place: int, *, compile: bool) -> None:
        """Split a transformer block into the parts before and after its self-attention.

        place: the index of this transformer block among those that the rank holds.
        """
        self.site, self._block, self._place = site, block, place
        self._normed = maybe_compiled(_normed, compile)
        self._projected = maybe_compiled(_projected, compile)
        self._finish = maybe_compiled(_finish, compile)

    def project(self, tokens: OpenSoraPlanTokens) -> Iterator[Tensor]:
        """Yield self-attention's values, then keys, then queries without RoPE, each [B, S, H, D]."""
        attn, x = self._block.attn1, self._normed(self._block, tokens.hidden_states, tokens.rows)
        for linear in (attn.to_v, attn.to_k, attn.to_q):
            yield self._projected(attn, linear, x)

    def finish(self, tokens: OpenSoraPlanTokens, attended: Tensor) -> OpenSoraPlanTokens:
        """Return the block's output tokens, given the output of its self-attention, [B, S, H, D]."""
        texts = [layers[self._place] for layers in tokens.context.prompts]
        x = self._finish(self._block, tokens.hidden_states, tokens.rows, attended, texts)
        return replace(tokens, hidden_states=x)

    def keys_values(self, text: Tensor) -> KeysValues:
        """Return cross-attention's keys and values [1, T, H, D] of an embedded text [1, T, width]."""
        attn = self._block.attn2
        return heads(attn.to_k(text), attn), heads(attn.to_v(text), attn)


class OpenSoraPlanTransformer(SplitModule[OpenSoraPlanTokens, OpenSoraPlanContext, OpenSoraPlanLayout]):
    """An OpenSoraT2V_v1_3 or OpenSoraInpaint_v1_3 split into embedding, transformer blocks and head."""

    LISTS = ("transformer_blocks",)
    module: OpenSoraT2V_v1_3
    blocks: Sequence[OpenSoraPlanBlock]

    def cut(self) -> list[OpenSoraPlanBlock]:
        blocks = of_class(TransformerBlock, self.module.transformer_blocks)
        pattern = transformer_spec(self.module.config).pattern
        sites = [Site(layer, pattern=pattern(layer)) for layer in self.layers.held]
        return [
            OpenSoraPlanBlock(*part, place, compile=self._compile)
            for place, part in enumerate(zip(blocks, sites, strict=True))
        ]

    def layout(self, latent_shape: tuple[int, int, int]) -> OpenSoraPlanLayout:
        """Return the layout (positions and RoPE rotations) of the tokens of latents (F, H, W).

        Called once per request.
        """
        frames, height, width = latent_shape
        patch, device = self.module.config["patch_size"], self.module.proj_out.weight.device
        grid = frames, height // patch, width // patch
        positions = grid_positions(grid, device=device)
        return OpenSoraPlanLayout(grid=grid, rope=self._rope_tables(grid, device).at(positions))

    def _rope_tables(self, grid: tuple[int, int, int], device: torch.device) -> RopeTables:
        """Return the RoPE rotations at all positions of a grid of tokens, in fp32.

        A third of a head's channels belongs to each axis. The first half of these is paired with the second.
        The authors round the angles to the model's dtype; here they stay exact.
        """
        config = self.module.config
        channels = config["attention_head_dim"] // 3
        frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, channels, 2, device=device).float() / channels)
        angles = [
            torch.outer(
                torch.arange(size, device=device).float() / config[f"interpolation_scale_{axis}"], frequencies
            )
            for size, axis in zip(grid, "thw", strict=True)
        ]
        return RopeTables(
            cos=tuple(torch.cat([angle, angle], dim=1).cos() for angle in angles),
            sin=tuple(torch.cat([-angle, angle], dim=1).sin() for angle in angles),
            apart=channels // 2,
        )

    def context(self, prompt_embeds: Tensor, prompt_attention_mask: Tensor) -> OpenSoraPlanContext:
        """Convert B encoded prompts to the keys and values that cross-attention reads, without padding.

        Called once per prompt. The arguments have the shapes [B, T, caption_channels] and [B, T].
        """
        prompts = []
        for embeds, mask in zip(prompt_embeds, prompt_attention_mask.bool(), strict=True):
            text = self.module.caption_projection(embeds[None, mask])
            prompts.append(tuple(block.keys_values(text) for block in self.blocks))
        return OpenSoraPlanContext(prompts=tuple(prompts))

    def join(self, contexts: Sequence[OpenSoraPlanContext]) -> OpenSoraPlanContext:
        """Merge several batches of encoded prompts, in the form that `context` returns, into one batch."""
        return OpenSoraPlanContext(prompts=tuple(prompt for one in contexts for prompt in one.prompts))

    def embed(
        self, latents: Tensor, timestep: Tensor, context: OpenSoraPlanContext, layout: OpenSoraPlanLayout
    ) -> OpenSoraPlanTokens:
        """Embed latents [B, C, F, H, W] at timesteps [B] as tokens, in the dtype of the latents."""
        return self.resume([self.module.embed(latents)], timestep, context, layout)

    def branch(self, tokens: OpenSoraPlanTokens, context: OpenSoraPlanContext) -> OpenSoraPlanTokens:
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
            temb=torch.cat([tokens.temb] * times),
            rows=torch.cat([tokens.rows] * times),
        )

    def resume(
        self,
        changing: Sequence[Tensor],
        timestep: Tensor,
        context: OpenSoraPlanContext,
        layout: OpenSoraPlanLayout,
    ) -> OpenSoraPlanTokens:
        """Rebuild tokens, the output of another rank's blocks, from the tensors that the other rank sent.

        changing: these tensors (`Tokens.changing`). timestep, context, layout: the arguments that the tokens
        were embedded with.
        """
        (hidden_states,) = changing
        rows, temb = self.module.adaln_single(timestep, hidden_dtype=hidden_states.dtype)
        return OpenSoraPlanTokens(
            hidden_states=hidden_states,
            temb=temb,
            rows=rows.unflatten(1, (6, -1)),
            context=context,
            layout=layout,
        )

    def changing_shapes(
        self, context: OpenSoraPlanContext, layout: OpenSoraPlanLayout
    ) -> tuple[tuple[int, ...]]:
        """Return the shape of the only tensor that transformer blocks change: hidden states [B, S, width]."""
        return ((context.batch, len(layout.rope.positions), self.module.proj_out.in_features),)

    def head(self, tokens: OpenSoraPlanTokens) -> Tensor:
        """Return the output of the transformer's head for each token, [B, S, patch values].

        A rank may call this for only its own tokens.
        """
        module = self.module
        shift, scale = (module.scale_shift_table + tokens.temb[:, None]).chunk(2, dim=1)
        values: Tensor = module.proj_out(module.norm_out(tokens.hidden_states).mul_(1 + scale).add_(shift))
        return values

    def unpatchify(self, values: Tensor, layout: OpenSoraPlanLayout) -> Tensor:
        """Assemble the prediction [B, C, F, H, W] from the head's output for all tokens.

        The head's output is [B, S, patch values].
        """
        patch = self.module.config["patch_size"]
        x = values.reshape(len(values), *layout.grid, patch, patch, -1)
        x = x.permute(0, 6, 1, 2, 4, 3, 5)  # [B, C, F, H, ph, W, pw]
        return x.flatten(5, 6).flatten(3, 4)


def _modulation(block: TransformerBlock, rows: Tensor) -> tuple[Tensor, ...]:
    """Return the shifts, scales and gates of a block, [B, 1, width] each.

    rows: the six rows of the timesteps, [B, 6, width].
    """
    return (block.scale_shift_table + rows).chunk(6, dim=1)


def _normed(block: TransformerBlock, x: Tensor, rows: Tensor) -> Tensor:
    """Return the normed and modulated tokens from which q, k and v are projected."""
    shift, scale, *_ = _modulation(block, rows)
    normed: Tensor = block.norm1(x)
    return normed.mul_(1 + scale).add_(shift)


def _projected(attn: Attention, linear: torch.nn.Linear, x: Tensor) -> Tensor:
    return heads(linear(x), attn)


def _finish(
    block: TransformerBlock, x: Tensor, rows: Tensor, attended: Tensor, texts: list[KeysValues]
) -> Tensor:
    """Run what follows a block's self-attention, and return the block's output tokens [B, S, width].

    rows: the six rows of the timesteps, [B, 6, width]. texts: the keys and values of each prompt, for
    cross-attention.
    """
    _, _, gate, shift, scale, ffn_gate = _modulation(block, rows)
    x = _out(attended, block.attn1).mul_(gate).add_(x)
    x = _cross_attention(block.attn2, x, texts).add_(x)
    out: Tensor = block.ff(block.norm2(x).mul_(1 + scale).add_(shift))
    return out.mul_(ffn_gate).add_(x)


def _cross_attention(attn: Attention, x: Tensor, texts: list[KeysValues]) -> Tensor:
    query = heads(attn.to_q(x), attn)
    # One prompt after another, because they may differ in length.
    each = [sdpa(one, *text) for one, text in zip(torch.split(query, 1), texts, strict=True)]
    return _out(torch.cat(each), attn)


def _out(attended: Tensor, attn: Attention) -> Tensor:
    out: Tensor = attn.to_out[0](attended.flatten(2, 3))
    return out
