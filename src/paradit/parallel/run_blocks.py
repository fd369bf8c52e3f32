"""Functions that run tokens through a transformer's blocks; several runs can be interleaved.

A run is a generator, which yields whenever attention has to wait for other ranks. Another run, such as that
of the second guidance branch, can compute meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import count
from typing import TypeVar

from torch import Tensor

from paradit.attention.base import Attend, Deal, Layout, Projection, Site, Wait
from paradit.models.protocol import Block, T
from paradit.trace.spans import layer_span

R = TypeVar("R")


def through_blocks(
    blocks: Sequence[Block[T]], tokens: T, attend: Attend, step: int = 0
) -> Generator[Wait, None, T]:
    """Run tokens through transformer blocks, and return them; yield each operation to be waited for.

    step: index of the denoising step; 0 if it is not known.
    """
    attend = in_step(attend, step)
    for place, block in enumerate(blocks):
        with layer_span(place):
            tokens = yield from block.run(tokens, attend)
    return tokens


def through_dealt_blocks(
    blocks: Sequence[Block[T]], tokens: T, deals: Sequence[Deal], step: int = 0
) -> Generator[Wait, None, T]:
    """Run this rank's tokens through transformer blocks, before some of which tokens move between ranks.

    tokens: all tokens of the video, of which this rank takes those that it holds. deals: how tokens are dealt
    to ranks in each block. Returns the tokens that this rank holds at the end, as the last block's are dealt.
    """
    now = deals[0]
    mine = tokens.dealt(tokens.hidden_states[:, now.held], now.held)
    for place, (block, deal) in enumerate(zip(blocks, deals, strict=True)):
        with layer_span(place):
            if deal is not now:
                moved = yield from now.move(mine.hidden_states, deal)
                mine, now = tokens.dealt(moved, deal.held), deal
            mine = yield from block.run(mine, in_step(deal.attend, step))
    return mine


def in_step(attend: Attend, step: int) -> Attend:
    """Return an attention function that calls `attend` with the denoising step, which blocks do not know."""

    def attend_in_step(site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        return attend(replace(site, step=step), projection, layout)

    return attend_in_step


def run_interleaved(works: Sequence[Generator[Wait, None, R]], lag: int = 0) -> list[R]:
    """Run generators side by side to their ends, waiting for what each yields; return their results.

    While one generator waits for data, the others compute. The generators take turns, each until it next
    yields, so that all ranks send and expect messages in the same order. lag: number of turns by which each
    generator starts after the previous one in the list.
    """
    results: dict[int, R] = {}
    waits: dict[int, Wait] = {}
    running = dict(enumerate(works))
    for turn in count():
        if not running:
            break
        # The order must not depend on which data arrive first: all ranks have to agree on it.
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
    """Run a single generator to its end, waiting for each operation that it yields; return its result."""
    (result,) = run_interleaved([work])
    return result
