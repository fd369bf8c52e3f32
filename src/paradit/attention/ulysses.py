"""Ulysses: attention whose tokens are spread over ranks. Exact: every row is computed once, by one rank."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from paradit.attention.local import sdpa
from paradit.attention.protocol import Attend, Projection, Wait
from paradit.attention.rope import Rope
from paradit.distributed.exchange import UlyssesExchange


def ulysses(exchange: UlyssesExchange) -> Attend:
    """The plain form: everything travels, then is computed, then travels back. See `UlyssesExchange`."""

    def attend(layer: int, projection: Projection, rope: Rope) -> Generator[Wait, None, Tensor]:  # noqa: ARG001
        # Each leaves as soon as it is there: v while k is projected, k while q is.
        value = next(projection)
        values = exchange.heads.start([value], like=value)
        keys = exchange.heads.start([rope.apply(next(projection))], like=value)
        queries = exchange.queries.start([rope.apply(next(projection))], like=value)
        yield from (values, keys, queries)
        attended = _compute(exchange, queries.wait(), keys.wait(), values.wait())
        results = exchange.results.start(attended, like=value)
        yield results
        (mine,) = results.wait()
        return mine

    return attend


def _compute(
    exchange: UlyssesExchange, queries: list[Tensor], keys: list[Tensor], values: list[Tensor]
) -> list[Tensor]:
    """The attended values of this rank's blocks of rows, each [B, rows, heads, D]."""
    attended = []
    for block, query in zip(exchange.work, queries, strict=True):
        first = exchange.first_head()
        heads = slice(block.first_head - first, block.last_head - first)
        attended.append(sdpa(query, keys[0][:, :, heads], values[0][:, :, heads]))
    return attended
