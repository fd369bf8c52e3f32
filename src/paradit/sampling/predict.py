"""One denoising step's predictions: of the prompt, and for guidance of the negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from paradit.attention import local
from paradit.models.protocol import Transformer
from paradit.sampling.forward import forward, run


class Predictor(Protocol):
    """Where and how the guidance branches are computed."""

    def contexts(self, transformer: Transformer, prompts: Sequence[Tensor]) -> list[Any]:
        """What this process needs of the prompts' embeddings [B, T, text_dim]; once per expert."""

    def __call__(
        self, transformer: Transformer, latents: Tensor, timestep: Tensor, contexts: list[Any], layout: Any
    ) -> list[Tensor]:
        """The prediction [B, C, F, h, w] for each prompt, on every process."""


class Here:
    """All in this process, a branch after the other, as diffusers does: equal to it bit for bit."""

    def contexts(self, transformer: Transformer, prompts: Sequence[Tensor]) -> list[Any]:
        return [transformer.context(embeds) for embeds in prompts]

    def __call__(
        self, transformer: Transformer, latents: Tensor, timestep: Tensor, contexts: list[Any], layout: Any
    ) -> list[Tensor]:
        # Both branches see the same tokens until they meet the text.
        tokens = transformer.embed(latents, timestep, contexts[0], layout)
        branches = [replace(tokens, context=context) for context in contexts]
        return [
            transformer.unpatchify(run(forward(transformer, branch, local.attend)), layout)
            for branch in branches
        ]
