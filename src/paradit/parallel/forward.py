"""One forward through a transformer's blocks, with whatever attention is given."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import count
from typing import TypeVar

from torch import Tensor

from paradit.attention.base import Attend, Site, Wait
from paradit.models.protocol import Tokens, Transformer
from paradit.trace.spans import layer_span

T = TypeVar("T")


def forward(transformer: Transformer, tokens: Tokens, attend: Attend) -> Generator[Wait, None, Tensor]:
    """Each token's part of the prediction, [B, S, patch values]; yields where `attend` would wait."""
    tokens = yield from through_blocks(transformer, tokens, attend)
    return transformer.head(tokens)


def through_blocks(transformer: Transformer, tokens: Tokens, attend: Attend) -> Generator[Wait, None, Tokens]:
    """The tokens after all blocks that the transformer holds."""
    for layer, block in enumerate(transformer.blocks):
        with layer_span(layer):
            attended = yield from attend(Site(layer), block.project(tokens), tokens.layout)
            tokens = block.finish(tokens, attended)
            del attended  # or it would be there still while the next block attends
    return tokens


def run_interleaved(works: Sequence[Generator[Wait, None, T]], lag: int = 0) -> list[T]:
    """Drive generators to their ends, side by side: while one's data are on their way, the others compute.

    In turn, so that on every rank messages are sent and expected in the same order. lag: how many turns each
    begins after the one before it.
    """
    results: dict[int, T] = {}
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


def run(work: Generator[Wait, None, T]) -> T:
    """Drive a generator to its end, alone: wait wherever it would wait."""
    (result,) = run_interleaved([work])
    return result
