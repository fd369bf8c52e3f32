"""Who computes a denoising step's predictions: of the prompt, and for guidance of the negative prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from paradit.attention.base import Kernel
from paradit.attention.local import local, sdpa
from paradit.models.protocol import Prompt, Transformer
from paradit.parallel.forward import forward, run


class Team(Protocol):
    """One process, or several that run the same program, as one of them sees it."""

    is_first: bool
    """Whether this process is the one that encodes, decodes and tells."""

    def share(
        self, make: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """What `make` gives on the first process, on all of them."""

    def agree(self, what: str, value: bytes) -> None:
        """Raise RuntimeError, naming the rank, where a process has another `value` than the first."""

    def gather_number(self, number: int) -> list[int]:
        """Every process's number, by rank."""

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> list[Any]:
        """What this process needs of the prompts; once per expert."""

    def predict(
        self, transformer: Transformer, latents: Tensor, timestep: Tensor, contexts: list[Any], layout: Any
    ) -> list[Tensor]:
        """The prediction [B, C, F, h, w] for each prompt, on every process."""


class Alone:
    """This process, a branch after the other, as diffusers does: equal to it bit for bit."""

    is_first = True

    def __init__(self, kernel: Kernel = sdpa) -> None:
        self._attend = local(kernel)

    def share(
        self,
        make: Callable[[], Tensor],
        shape: Sequence[int],  # noqa: ARG002
        dtype: torch.dtype,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> Tensor:
        return make()

    def agree(self, what: str, value: bytes) -> None:
        """Nobody is there to differ."""

    def gather_number(self, number: int) -> list[int]:
        return [number]

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> list[Any]:
        return [transformer.context(*prompt) for prompt in prompts]

    def predict(
        self, transformer: Transformer, latents: Tensor, timestep: Tensor, contexts: list[Any], layout: Any
    ) -> list[Tensor]:
        # Both branches see the same tokens until they meet the text.
        tokens = transformer.embed(latents, timestep, contexts[0], layout)
        branches = [transformer.branch(tokens, context) for context in contexts]
        return [
            transformer.unpatchify(run(forward(transformer, branch, self._attend)), layout)
            for branch in branches
        ]
