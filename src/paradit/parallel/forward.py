"""Tokens on their way through a transformer's blocks, with whatever attention is given."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import count
from typing import TypeVar

from torch import Tensor

from paradit.attention.base import Attend, Layout, Projection, Site, Wait
from paradit.models.protocol import Block, T
from paradit.trace.spans import layer_span

R = TypeVar("R")


def through_blocks(
    blocks: Sequence[Block[T]], tokens: T, attend: Attend, step: int = 0
) -> Generator[Wait, None, T]:
    """Take tokens through blocks, and return them; yields where `attend` would wait.

    step: the denoising step, where it is known.
    """
    attend = in_step(attend, step)
    for place, block in enumerate(blocks):
        with layer_span(place):
            tokens = yield from block.run(tokens, attend)
    return tokens


def in_step(attend: Attend, step: int) -> Attend:
    """Attention that is told the step too, which blocks do not know."""

    def attend_in_step(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        if site.pattern is not None:
            raise NotImplementedError(f"no form of attention here has patterns, as of {site}")
        return attend(replace(site, step=step), projection, layout)

    return attend_in_step


def run_interleaved(works: Sequence[Generator[Wait, None, R]], lag: int = 0) -> list[R]:
    """Drive generators to their ends, side by side: while one's data are on their way, the others compute.

    In turn, so that on every rank messages are sent and expected in the same order. lag: how many turns each
    begins after the one before it.
    """
    results: dict[int, R] = {}
    waits: dict[int, Wait] = {}
    running = dict(enumerate(works))
    for turn in count():
        if not running:
            break
        for index, work in list(running.items()):
            if turn < index * lag:
                continue
            if index in waits:
                waits.pop(index).wait()
            try:
                waits[index] = next(work)
            except StopIteration as end:
                results[index] = end.value
                del running[index]
    return [results[index] for index in range(len(works))]


def run(work: Generator[Wait, None, R]) -> R:
    """Drive a generator to its end, alone: wait wherever it would wait."""
    (result,) = run_interleaved([work])
    return result
