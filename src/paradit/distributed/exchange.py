"""Ulysses' exchange over token shares and work shares: q, k, v travel to the work, the results back.

DeepSpeed-Ulysses (arXiv 2309.14509) divides whole heads and equal sequences. Here a rank's share of the work
is any contiguous range of (head, query row) pairs (`Shares`): its first and its last head may be shared with
a neighbour by query rows, and the keys and values of such a head go to both. And the work may be cut into
chunks, each of which travels by itself (PipeSP, arXiv 2511.12056).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from paradit.distributed.redistribution import Move, Redistribution
from paradit.distributed.shares import Box, Shares, chunk_boxes
from paradit.distributed.transport import Transport


@dataclass(frozen=True)
class Chunk:
    """A part of every rank's work, and the three moves of its attention."""

    work: Sequence[Box]
    """What this rank computes, by blocks of query rows."""
    new_heads: Box
    """Heads whose keys and values come with this chunk; a head that an earlier chunk began is there."""
    queries: Redistribution
    """Queries, from the ranks that hold their tokens to those that compute their rows."""
    heads: Redistribution
    """Keys, or values, to every rank that works on their heads."""
    results: Redistribution
    """Attended values, back to the ranks that hold the tokens."""


class UlyssesExchange:
    """The moves of one attention, for the ranks of a transport's group."""

    def __init__(
        self, shares: Shares, transport: Transport, num_chunks: int = 1, *, whole_heads: bool = False
    ) -> None:
        """whole_heads: a rank gets all heads of its share of them, even if its rows need fewer (for USP)."""
        if shares.num_ranks != transport.num_ranks:
            raise ValueError(f"shares for {shares.num_ranks} ranks, and {transport.num_ranks} exchange")
        self.shares = shares
        self.transport = transport
        ranks = range(shares.num_ranks)
        replicated = [shares.replicated] if shares.num_replicated else []
        tokens = [[shares.tokens_of(rank)] for rank in ranks]
        helpers = shares.num_helpers
        held = [shares.held_by(rank) for rank in ranks]
        self.chunks: list[Chunk] = []
        for boxes in chunk_boxes(shares, num_chunks, whole_heads=whole_heads):
            work, heads = boxes.work, boxes.new_heads
            self.chunks.append(
                Chunk(
                    work=work[transport.rank],
                    new_heads=heads[transport.rank],
                    queries=Redistribution(tokens, work, transport, replicated, helpers),
                    heads=Redistribution(tokens, [[box] for box in heads], transport, replicated, helpers),
                    results=Redistribution(work, held, transport),
                )
            )

    def held(self, tensor: Tensor) -> list[Tensor]:
        """A tensor [B, this rank's tokens and the replicated, H, D] in those two parts; a helper's is one."""
        num_tokens = self.shares.tokens[self.transport.rank]
        if not self.shares.num_replicated or self.transport.rank >= self.shares.num_holders:
            return [tensor]
        return [tensor[:, :num_tokens], tensor[:, num_tokens:]]

    def send(self, redistribution: Redistribution, tensor: Tensor) -> Move:
        """A move of what this rank holds: `queries` or `heads` of a chunk."""
        return redistribution.move(self.held(tensor), like=tensor)

    def bytes_sent(self, rank: int, batch: int, head_dim: int, itemsize: int) -> int:
        """What `rank` sends in one attention: keys and values, queries, results."""
        rows = sum(
            2 * chunk.heads.elements_sent(rank)
            + chunk.queries.elements_sent(rank)
            + chunk.results.elements_sent(rank)
            for chunk in self.chunks
        )
        return rows * batch * head_dim * itemsize
