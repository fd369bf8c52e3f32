"""Denoise, the second stage: turns noise into a video's latents, with the sampler of the request's method."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from paradit.sampling.sampler import Work, sampler_of


def denoise(work: Work) -> Iterator[Tensor]:
    """Yield the denoised latents [1, C, f, h, w], fp32, of each frame block in order, as `Sampler.blocks`.

    Every process that takes part calls it with the same request, and iterates to the end. Raises
    RuntimeError, naming the rank, if requests or weights differ.
    """
    work.team.agree("what is asked for", repr(work.request).encode())
    return sampler_of(work.request).blocks(work)
