"""Encoded prompts of a long video's frame blocks, as the transformer blocks of one rank read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from paradit.config.requests import ResolvedRequest
from paradit.models.protocol import Conditions, Context, Prompt, VideoModel


class BlockPrompts:
    """Prompts of each frame block, converted for the transformer on first use."""

    def __init__(
        self,
        model: VideoModel,
        request: ResolvedRequest,
        given: Conditions,
        prompts: tuple[Prompt, ...],
        *,
        later: Iterable[tuple[int, Prompt]],
        branches: Sequence[int],
    ) -> None:
        """Keep the encoded prompts, with the embeddings of the request's pictures that a transformer reads.

        given: effect of the request's pictures. prompts: the prompt and, with guidance, the negative prompt.
        later: pairs of a frame block's index, counted from 0, and the prompt that replaces the first one from
        that block on. branches: indices of the guidance branches that this rank computes.
        """
        self._model, self._branches = model, branches
        self._computed = request.branches(model.spec)
        """Number of guidance branches that each expert computes."""
        self._prompts = given.prompts(prompts)
        self._later = [(block, given.prompts((prompt,))[0]) for block, prompt in later]
        self._contexts: dict[tuple[int, int], Context] = {}
        """Prompts as the transformer blocks read them, by (expert's index, `id` of the encoded prompt)."""

    def at(self, block: int, expert: int) -> dict[int, Context]:
        """Return a frame block's encoded prompts, by the guidance branches of this rank that are computed.

        They have the form that the transformer blocks read. block: index of the frame block. expert: index of
        the expert transformer, which may need fewer branches than another one.
        """
        texts = list(self._prompts)
        for first, text in self._later:
            texts[0] = text if first <= block else texts[0]
        computed = [branch for branch in self._branches if branch < self._computed[expert]]
        return {branch: self._context(expert, texts[branch]) for branch in computed}

    @torch.no_grad()  # also called outside the denoising, for the shapes of messages
    def _context(self, expert: int, text: Prompt) -> Context:
        # An `id` is safe as a key, because this object keeps all of its prompts alive.
        key = expert, id(text)
        if key not in self._contexts:
            self._contexts[key] = self._model.experts[expert].context(*text)
        return self._contexts[key]
