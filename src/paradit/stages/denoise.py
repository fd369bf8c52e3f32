"""Denoise, the second stage: turns noise into latents, by the sampler of the request's denoising method."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from paradit.sampling.sampler import Work, sampler_of


def denoise(work: Work) -> Iterator[Tensor]:
    """Yield the denoised latents [1, C, f, h, w], fp32, of each frame block in order.

    Every rank that takes part calls this with the same request, and iterates to the end; only the first rank
    is sure to get all frame blocks. Raises RuntimeError, naming the rank, if ranks have different requests or
    weights, and the errors of `Sampler.blocks`.
    """
    work.predictor.agree("the request", repr(work.request).encode())
    return sampler_of(work.request).blocks(work)
