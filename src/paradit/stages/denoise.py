"""The second stage: from noise to a video's latents, by its method's sampler."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from paradit.sampling.sampler import Work, sampler_of


def denoise(work: Work) -> Iterator[Tensor]:
    """Make the latents [1, C, f, h, w], fp32, of each block in order, as `Sampler.blocks`.

    Every process of a team calls it and goes through it with the same request. Raises RuntimeError, naming
    the rank, if requests or weights differ.
    """
    work.team.agree("what is asked for", repr(work.request).encode())
    return sampler_of(work.request).blocks(work)
