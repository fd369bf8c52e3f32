"""Joint attention: a video's tokens, and after them the text's, which every rank holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Self, TypeVar

import torch
from torch import Tensor

from paradit.attention.base import Layout
from paradit.attention.rope import Rope, grid_positions
from paradit.models.common.cut import CutModule
from paradit.models.protocol import T, Tokens


@dataclass(frozen=True, kw_only=True)
class JointLayout(Layout):
    """Where a video's tokens are, and how many of the text, which are replicated, follow them.

    The text's are known with the prompt, so `embed` gives the tokens a layout with them.
    """

    grid: tuple[int, int, int]
    """Tokens of the video by (frames, height, width)."""

    @classmethod
    def of(cls, grid: tuple[int, int, int], cos: Tensor, sin: Tensor) -> Self:
        """The layout of a video without text, by diffusers' tables [S, D], in which neighbours are alike."""
        signs = torch.ones_like(sin[0])
        signs[0::2] = -1
        positions = grid_positions(grid, device=cos.device)
        return cls(
            grid=grid,
            rope=Rope(positions=positions, cos=cos[None, :, None], sin=(sin * signs)[None, :, None]),
        )

    def with_text(self, length: int) -> Self:
        """The whole video's layout with a text of `length` tokens after it, instead of any that is there."""
        return replace(self, num_replicated=length).shard(0, prod(self.grid), _still(self.rope, length))

    def shard(self, start: int, stop: int, text: Rope | None = None) -> Self:
        """The layout of the video's tokens start to stop only, and of all of the text's."""
        if text is None:
            end = len(self.rope.positions)
            text = self.rope.shard(end - self.num_replicated, end)
        return replace(self, rope=self.rope.shard(start, stop).followed_by(text))


@dataclass(frozen=True)
class JointContext:
    """What the transformer reads of B prompts of one length, without padding."""

    prompt_embeds: Tensor
    """[B, T, text_dim]."""

    @property
    def batch(self) -> int:
        return len(self.prompt_embeds)


@dataclass(frozen=True, kw_only=True)
class JointTokens(Tokens):
    """A video's tokens, and beside them the text's."""

    layout: JointLayout
    encoder_hidden_states: Tensor
    """[B, T, width], the text's."""

    @property
    def changing(self) -> tuple[Tensor, Tensor]:
        return self.hidden_states, self.encoder_hidden_states

    def shard(self, start: int, stop: int | None) -> Self:
        """The video's tokens start to stop, and all of the text's."""
        start, stop, _ = slice(start, stop).indices(self.hidden_states.shape[1])
        return replace(
            self, hidden_states=self.hidden_states[:, start:stop], layout=self.layout.shard(start, stop)
        )


J = TypeVar("J", bound=JointContext)


class JointModule(CutModule[T, J, JointLayout]):
    """A diffusers module in pieces, whose blocks change the video's tokens and the text's."""

    def changing_shapes(self, context: J, layout: JointLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the video's tokens [B, S, width] and the text's [B, T, width]; a layout without text."""
        width = self.num_heads * self.module.config.attention_head_dim
        rows = len(layout.rope.positions), context.prompt_embeds.shape[1]
        return (context.batch, rows[0], width), (context.batch, rows[1], width)


def split(both: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The video's rows, of which there are `length`, and the text's, of [B, S + T, width]."""
    return both[:, :length], both[:, length:]


def _still(like: Rope, length: int) -> Rope:
    """The text is not rotated: that is position 0, an angle of 0."""
    one = like.cos.new_ones(1, length, 1, like.cos.shape[3])
    return Rope(positions=like.positions.new_zeros(length, 3), cos=one, sin=torch.zeros_like(one))
