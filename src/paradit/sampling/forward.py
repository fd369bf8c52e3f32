"""One forward through a transformer's blocks, with whatever attention is given."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from torch import Tensor

from paradit.attention.protocol import Attend, Wait
from paradit.models.protocol import Tokens, Transformer

T = TypeVar("T")


def forward(transformer: Transformer, tokens: Tokens, attend: Attend) -> Generator[Wait, None, Tensor]:
    """Each token's part of the prediction, [B, S, patch values]; yields where `attend` would wait."""
    for layer, block in enumerate(transformer.blocks):
        attended = yield from attend(layer, block.project(tokens), tokens.layout)
        tokens = block.finish(tokens, attended)
    return transformer.head(tokens)


def run(work: Generator[Wait, None, T]) -> T:
    """Drive a generator to its end, alone: wait wherever it would wait."""
    try:
        while True:
            next(work).wait()
    except StopIteration as end:
        result: T = end.value
        return result
