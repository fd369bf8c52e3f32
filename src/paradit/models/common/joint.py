"""Base classes for joint attention, in which a video's tokens and its text's tokens attend to each other.

Each rank holds a share of the video's tokens, followed by all of the text's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Self, TypeVar

import torch
from torch import Tensor

from paradit.attention.base import Layout
from paradit.attention.rope import Rope, grid_positions
from paradit.models.common.split_module import SplitModule
from paradit.models.protocol import T, Tokens


@dataclass(frozen=True, kw_only=True)
class JointLayout(Layout):
    """Layout (positions and RoPE rotations) of a video's tokens and of the text tokens that follow them.

    Every rank holds all text tokens. Their number is known only with the prompt, so a layout is first made
    without text tokens, and they are added when latents are embedded.
    """

    grid: tuple[int, int, int]
    """Number of the video's tokens along (frames, height, width)."""

    @classmethod
    def of(cls, grid: tuple[int, int, int], cos: Tensor, sin: Tensor) -> Self:
        """Return the layout of a video without text, from diffusers' RoPE tables [S, D].

        The tables hold each angle twice, in neighbouring channels.
        """
        signs = torch.ones_like(sin[0])
        # `Rope` expects sines that are negated for the first channel of each pair.
        signs[0::2] = -1
        positions = grid_positions(grid, device=cos.device)
        return cls(
            grid=grid,
            rope=Rope(positions=positions, cos=cos[None, :, None], sin=(sin * signs)[None, :, None]),
        )

    def with_text(self, length: int) -> Self:
        """Return this layout with `length` text tokens after the video's, instead of any that it has so far.

        This layout must be that of the whole video, not of one rank's tokens.
        """
        return replace(self, num_replicated=length).shard(0, prod(self.grid), _still(self.rope, length))

    def shard(self, start: int, stop: int, text: Rope | None = None) -> Self:
        """Return the layout of video tokens `start` to `stop` (excluded) and of all text tokens.

        text: the RoPE rotations of the text's tokens; None: those in this layout.
        """
        if text is None:
            end = len(self.rope.positions)
            text = self.rope.shard(end - self.num_replicated, end)
        return replace(self, rope=self.rope.shard(start, stop).followed_by(text))


@dataclass(frozen=True)
class JointContext:
    """Batch of B encoded prompts of equal length, without padding, in the form that the transformer reads."""

    prompt_embeds: Tensor
    """Prompt embeddings [B, T, text_dim]."""

    @property
    def batch(self) -> int:
        return len(self.prompt_embeds)


@dataclass(frozen=True, kw_only=True)
class JointTokens(Tokens):
    """Tokens of a video and of its text on their way through the transformer blocks."""

    layout: JointLayout
    encoder_hidden_states: Tensor
    """Hidden states [B, T, width] of the text's tokens."""

    @property
    def changing(self) -> tuple[Tensor, Tensor]:
        return self.hidden_states, self.encoder_hidden_states


J = TypeVar("J", bound=JointContext)


class JointModule(SplitModule[T, J, JointLayout]):
    """A split diffusers transformer whose blocks update both the video's and the text's tokens."""

    def changing_shapes(self, context: J, layout: JointLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of the tokens that blocks update: video [B, S, width] and text [B, T, width].

        context: the encoded prompts. layout: the layout of the video without text.
        """
        width = self.num_heads * self.module.config.attention_head_dim
        rows = len(layout.rope.positions), context.prompt_embeds.shape[1]
        return (context.batch, rows[0], width), (context.batch, rows[1], width)


def split(both: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Split a tensor [B, S + T, width] into the rows of S = `length` video tokens and of T text tokens."""
    return both[:, :length], both[:, length:]


def _still(like: Rope, length: int) -> Rope:
    """Return RoPE rotations that leave `length` text tokens unchanged: position 0, angle 0."""
    one = like.cos.new_ones(1, length, 1, like.cos.shape[3])
    return Rope(positions=like.positions.new_zeros(length, 3), cos=one, sin=torch.zeros_like(one))
