"""Who computes a denoising step's predictions: of the prompt, and for guidance of the negative prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from paradit.attention.base import Kernel, Layout
from paradit.attention.local import local, sdpa
from paradit.models.protocol import Context, Prompt, Transformer
from paradit.parallel.forward import run_interleaved, through_blocks


class Branches:
    """What a process needs of the prompts whose branches it computes, made when it is asked for."""

    def __init__(self, transformer: Transformer, prompts: Sequence[Prompt]) -> None:
        self._transformer, self._prompts = transformer, prompts

    @cached_property
    def each(self) -> list[Context]:
        """A context for each prompt."""
        return [self._transformer.context(*prompt) for prompt in self._prompts]

    @cached_property
    def joined(self) -> Context:
        """One context for all prompts."""
        return self.each[0] if len(self._prompts) == 1 else self._transformer.join(self.each)


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

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> Branches:
        """What this process needs of the prompts; once per expert."""

    def predict(
        self,
        transformer: Transformer,
        latents: Tensor,
        timestep: Tensor,
        contexts: Branches,
        layout: Layout,
        *,
        step: int = 0,
    ) -> list[Tensor]:
        """The prediction [B, C, F, h, w] for each prompt, on every process.

        step: the denoising step, where it is known.
        """


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

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> Branches:
        branches = Branches(transformer, prompts)
        assert branches.each  # made now
        return branches

    def predict(
        self,
        transformer: Transformer,
        latents: Tensor,
        timestep: Tensor,
        contexts: Branches,
        layout: Layout,
        *,
        step: int = 0,
    ) -> list[Tensor]:
        # Both branches see the same tokens until they meet the text.
        tokens = transformer.embed(latents, timestep, contexts.each[0], layout)
        predictions = []
        for context in contexts.each:
            branch = transformer.branch(tokens, context)
            work = through_blocks(transformer.blocks, branch, self._attend, step)
            values = transformer.head(*run_interleaved([work]))
            predictions.append(transformer.unpatchify(values, layout))
        return predictions
