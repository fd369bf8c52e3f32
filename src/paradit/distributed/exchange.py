"""Ulysses' exchange over token shares and work shares: q, k, v travel to the work, the results back.

DeepSpeed-Ulysses (arXiv 2309.14509) divides whole heads and equal sequences. Here a rank's share of the work
is any contiguous range of (head, query row) pairs (`Shares`): its first and its last head may be shared with
a neighbour by query rows, and the keys and values of such a head go to both.
"""

from __future__ import annotations

from paradit.distributed.redistribution import Redistribution
from paradit.distributed.shares import Shares
from paradit.distributed.transport import Transport


class UlyssesExchange:
    """The three moves of one attention, for the ranks of a transport's group."""

    def __init__(self, shares: Shares, transport: Transport) -> None:
        if shares.num_ranks != transport.num_ranks:
            raise ValueError(f"shares for {shares.num_ranks} ranks, and {transport.num_ranks} exchange")
        ranks = range(shares.num_ranks)
        tokens = [shares.tokens_of(rank) for rank in ranks]
        work = [shares.work_of(rank) for rank in ranks]
        heads = [shares.heads_of(rank) for rank in ranks]
        self.work = work[transport.rank]
        """What this rank computes, by blocks of query rows."""
        self.queries = Redistribution(tokens, work, transport)
        """Queries, from the ranks that hold their tokens to those that compute their rows."""
        self.heads = Redistribution(tokens, heads, transport)
        """Keys, or values, to every rank that works on their heads."""
        self.results = Redistribution(work, tokens, transport)
        """Attended values, back to the ranks that hold the tokens."""
        self._heads, self._rank = heads, transport.rank

    def first_head(self) -> int:
        """The head that comes first in what `heads` gives this rank."""
        return self._heads[self._rank][0].first_head

    def bytes_sent(self, rank: int, batch: int, head_dim: int, itemsize: int) -> int:
        """What `rank` sends in one attention: keys and values, queries, results."""
        rows = 2 * self.heads.elements_sent(rank)
        rows += self.queries.elements_sent(rank) + self.results.elements_sent(rank)
        return rows * batch * head_dim * itemsize
