"""Predictors of a transformer's output for the prompt and, with guidance, the negative prompt.

This module has their interface, and the predictor for a single process. That for several ranks is in
`parallel.sequence_parallel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from paradit.attention.base import Kernel, Layout
from paradit.attention.local_attention import local, sdpa
from paradit.models.protocol import Context, Prompt, Transformer
from paradit.parallel.run_blocks import run_interleaved, through_blocks


class Branches:
    """Prompts of a process's guidance branches, converted to the transformer's form on first use."""

    def __init__(self, transformer: Transformer, prompts: Sequence[Prompt]) -> None:
        self._transformer, self._prompts = transformer, prompts

    @cached_property
    def each(self) -> Sequence[Context]:
        """Prompts as the transformer blocks read them, one for each guidance branch."""
        return [self._transformer.context(*prompt) for prompt in self._prompts]

    @cached_property
    def joined(self) -> Context:
        """Prompts of all guidance branches as one batch, as the transformer blocks read it."""
        if len(self._prompts) == 1:
            return self.each[0]
        joined = self._transformer.join(self.each)
        self.each = self._transformer.separate(joined, self.each)  # frees what was copied
        return joined


class Predictor(Protocol):
    """Interface by which a sampler gets predictions, from one process or from ranks that work together."""

    is_first: bool
    """Whether this process is the one that encodes, decodes and reports progress."""

    def share(
        self, make: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return, on all processes, the tensor that `make` returns on the first; only the first calls `make`.

        shape, dtype, device: shape, dtype and device of that tensor.
        """

    def agree(self, what: str, value: bytes) -> None:
        """Raise RuntimeError, naming the rank, if a process passes another `value` than the first process.

        what: name of the value, for the error message.
        """

    def gather_number(self, number: int) -> list[int]:
        """Collect a number from every process, and return the numbers in the order of ranks.

        All processes call it together.
        """

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> Branches:
        """Return the prompts of the guidance branches that this process computes.

        They are converted for the transformer on first use. Called once per expert transformer.
        """

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
        """Return the transformer's prediction [B, C, F, h, w] for each prompt, on every process.

        step: index of the denoising step; 0 if it is not known.
        """


class LocalPredictor:
    """Predictor in one process: computes one guidance branch after another, bit for bit like diffusers."""

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
        """Do nothing, because there is no other process that could differ."""

    def gather_number(self, number: int) -> list[int]:
        return [number]

    def contexts(self, transformer: Transformer, prompts: Sequence[Prompt]) -> Branches:
        branches = Branches(transformer, prompts)
        assert branches.each  # creates the contexts now
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
        # Embed once: both branches have the same tokens until they meet the text.
        tokens = transformer.embed(latents, timestep, contexts.each[0], layout)

        def predicted(context: Context) -> Tensor:
            branch = transformer.branch(tokens, context)
            work = through_blocks(transformer.blocks, branch, self._attend, step)
            return transformer.unpatchify(transformer.head(*run_interleaved([work])), layout)

        return [predicted(context) for context in contexts.each]
