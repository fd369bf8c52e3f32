"""Ulysses exchange: queries, keys and values go to the ranks that compute attention, results come back.

DeepSpeed-Ulysses (arXiv 2309.14509) divides attention by whole heads, and the sequence into equal parts. Here
a rank computes any contiguous range of (head, query row) pairs, its share of the work (`Shares`). If two
ranks divide a head between them by query rows, the keys and values of that head go to both. The work may also
be divided into chunks that travel separately (PipeSP, arXiv 2511.12056).
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
    """One chunk of an attention computation, whose data travel separately from those of other chunks.

    It says what this rank computes in the chunk, and has the plans of what all ranks send to each other for
    it.
    """

    work: Sequence[Box]
    """Query rows that this rank computes in this chunk, as rectangles of tokens x heads."""
    new_heads: Box
    """Heads whose keys and values this rank receives with this chunk, without those of earlier chunks."""
    queries: Redistribution
    """Plan of the messages that take queries from the ranks that hold their tokens to the ranks that compute
    their attention."""
    heads: Redistribution
    """Plan of the messages that take keys, or values, from the ranks that hold their tokens to the ranks that
    need them."""
    results: Redistribution
    """Plan of the messages that take attended values back to the ranks that hold their tokens."""


class UlyssesExchange:
    """Exchange of one attention's queries, keys, values and results among ranks, chunk by chunk."""

    def __init__(
        self, shares: Shares, transport: Transport, num_chunks: int = 1, *, whole_heads: bool = False
    ) -> None:
        """Plan what each rank sends and receives in each chunk.

        shares: the ranks' shares of tokens and of attention (pairs of head and query row). transport:
        connection among these ranks. whole_heads: whether each rank receives the keys and values of an equal
        part of the heads, even those that its query rows do not need. USP and long videos require this: there
        a rank's heads must not depend on its query rows.
        """
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
                    # Every rank needs the results of its own tokens, and those of all replicated ones.
                    results=Redistribution(work, held, transport),
                )
            )

    def held(self, tensor: Tensor) -> list[Tensor]:
        """Split a tensor [B, tokens, H, D] into this rank's own tokens and the replicated ones, such as text.

        Replicated tokens are those that every rank holds. Returns the whole tensor, in a list, if there are
        none, or if this rank holds no tokens and only computes attention.
        """
        num_tokens = self.shares.tokens[self.transport.rank]
        if not self.shares.num_replicated or self.transport.rank >= self.shares.num_holders:
            return [tensor]
        return [tensor[:, :num_tokens], tensor[:, num_tokens:]]

    def send(self, redistribution: Redistribution, tensor: Tensor) -> Move:
        """Prepare to send this rank's queries, keys or values to other ranks; return a transfer to `start`.

        redistribution: description of which tokens and heads each rank sends to which, an attribute of a
        chunk: `queries` for queries, `heads` for keys and values. tensor: this rank's queries, keys or
        values, [B, tokens, H, D].
        """
        return redistribution.move(self.held(tensor), like=tensor)

    def bytes_sent(self, rank: int, batch: int, head_dim: int, itemsize: int) -> int:
        """Return how many bytes `rank` sends in one attention, for keys, values, queries and results."""
        rows = sum(
            2 * chunk.heads.elements_sent(rank)
            + chunk.queries.elements_sent(rank)
            + chunk.results.elements_sent(rank)
            for chunk in self.chunks
        )
        return rows * batch * head_dim * itemsize
