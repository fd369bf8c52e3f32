"""The second stage: from noise to a video's latents, by its method's sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

from torch import Tensor

from paradit.sampling.sampler import Enough, Work, sampler_of


def denoise(work: Work, heeding: AbstractContextManager[None] | None = None) -> Iterator[Tensor]:
    """Make the latents [1, C, f, h, w], fp32, of each block in order, as `Sampler.blocks`.

    Every process of a team goes through it with the same request; told as stage "denoise". heeding: entered
    while somebody looks after every step whether the run is to end. Raises RuntimeError, naming the rank, if
    requests or weights differ.
    """
    sampler = sampler_of(work.request)
    work.team.agree("what is asked for", repr(work.request).encode())
    total = sampler.total(work.model, work.request)
    with work.progress.stage("denoise", total=total), heeding or nullcontext(), suppress(Enough):
        yield from sampler.blocks(work)
