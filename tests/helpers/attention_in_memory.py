"""Attention on ranks that all run in this process.

Attention is a generator that yields whenever it would wait, so each rank is advanced to its next wait in
turn, while messages lie in memory.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from paradit.attention.base import Attend, Site
from paradit.attention.chunked import chunked as attend_in_chunks
from paradit.attention.local_attention import sdpa
from paradit.attention.patterns import Pattern
from paradit.attention.pipesp_paper import pipesp_paper
from paradit.attention.rope import Rope
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares

DEPTH = 16
"""Head dim. With 8, a row's bits depend on the number of other rows; real models have 32 and more."""


class MemoryTransport:
    """Transport within one process; the n-th start of one rank meets the n-th of the others.

    A message is read as late as possible, when it is waited for, so that a buffer that was overwritten in
    flight arrives wrong.
    """

    def __init__(self, rank: int, num_ranks: int, mail: dict[Any, Any]) -> None:
        self.rank, self.num_ranks, self.mail = rank, num_ranks, mail
        self.started = self.bytes_sent = 0
        self.teams: list[MemoryTransport] = []

    def among(self, ranks: Sequence[int]) -> "MemoryTransport":
        mail = self.mail.setdefault(tuple(ranks), {})  # ranks of one team share it
        self.teams.append(MemoryTransport(list(ranks).index(self.rank), len(ranks), mail))
        return self.teams[-1]

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> "MemoryTransfer":
        for rank, message in enumerate(outgoing):
            self.mail[self.started, self.rank, rank] = message
            self.bytes_sent += message.nbytes if rank != self.rank else 0
        self.started += 1
        return MemoryTransfer(self, self.started - 1, sizes)


class MemoryTransfer:
    def __init__(self, transport: MemoryTransport, number: int, sizes: Sequence[int]) -> None:
        self.transport, self.number, self.sizes = transport, number, sizes

    def wait(self) -> list[Tensor]:
        mail, mine = self.transport.mail, self.transport.rank
        messages = [mail.pop((self.number, rank, mine)).clone() for rank in range(self.transport.num_ranks)]
        assert [len(message) for message in messages] == list(self.sizes)
        return messages


def world(num_ranks: int) -> list[Any]:
    mail: dict[Any, Any] = {}
    return [MemoryTransport(rank, num_ranks, mail) for rank in range(num_ranks)]


def split(total: int, parts: int) -> tuple[int, ...]:
    """Return the sizes of `parts` parts of `total`, which differ by at most one."""
    ends = [total * part // parts for part in range(parts + 1)]
    return tuple(stop - start for start, stop in pairwise(ends))


def run_together(works: list[Any]) -> list[Tensor]:
    """Advance every generator to its next wait, in turn, until all have returned their results."""
    results: dict[int, Tensor] = {}
    while len(results) < len(works):
        for index, work in enumerate(works):
            if index not in results:
                try:
                    next(work)
                except StopIteration as end:
                    results[index] = end.value
    return [results[index] for index in range(len(works))]


@dataclass(frozen=True)
class Unrotated:
    """Layout with rotations that leave everything unchanged."""

    num_tokens: int
    num_replicated: int = 0

    @property
    def rope(self) -> Rope:
        cos = torch.ones(1, self.num_tokens, 1, DEPTH)
        return Rope(positions=torch.arange(self.num_tokens)[:, None], cos=cos, sin=torch.zeros_like(cos))


Form = Callable[[Shares, Any], Any]
"""Function from shares and a transport of any kind to an attention.

Its type says no more, because these layouts and transports only look like those of real runs.
"""


def of_rank(shares: Shares, rank: int, *all_rows: Tensor) -> list[Tensor]:
    """Return a rank's part of tensors [B, S, H, D]: its tokens and, on holders, the replicated rows."""
    text = shares.num_replicated if rank < shares.num_holders else 0
    parts = [x.split([*shares.tokens, shares.num_replicated], dim=1) for x in all_rows]
    return [torch.cat([part[rank], part[-1][:, :text]], dim=1) for part in parts]


def layout_of(shares: Shares, rank: int) -> Unrotated:
    text = shares.num_replicated if rank < shares.num_holders else 0
    return Unrotated(shares.tokens[rank] + text, text)


def attend_on_ranks(
    shares: Shares, q: Tensor, k: Tensor, v: Tensor, form: Form, *, pattern: Pattern | None = None
) -> tuple[Tensor, list[Any]]:
    """Return the attended values of all rows, after a check that replicated rows are equal on all holders."""
    transports = world(shares.num_ranks)
    works = [
        form(shares, transport)(
            Site(0, pattern=pattern), iter(of_rank(shares, rank, v, k, q)), layout_of(shares, rank)
        )
        for rank, transport in enumerate(transports)
    ]
    results = run_together(works)
    tokens = [result[:, :number] for result, number in zip(results, shares.tokens, strict=True)]
    replicated = [result[:, number:] for result, number in zip(results, shares.tokens, strict=True)]
    assert not any(rows.numel() for rows in replicated[shares.num_holders :])
    replicated = replicated[: shares.num_holders]
    assert all(torch.equal(rows, replicated[0]) for rows in replicated)
    return torch.cat([*tokens, replicated[0]], dim=1), transports


def chunked(num_chunks: int) -> Form:
    return lambda shares, transport: attend_in_chunks(UlyssesExchange(shares, transport, num_chunks), sdpa)


def paper(shares: Shares, transport: Any) -> Attend:
    by_head = UlyssesExchange(shares, transport, shares.most_heads)
    return pipesp_paper(UlyssesExchange(shares, transport), by_head, sdpa)


FORMS = {"plain": chunked(1), "2 chunks": chunked(2), "5 chunks": chunked(5), "paper": paper}


SHARES = {
    "one rank": Shares.equal(27, 3, 1),
    "27 tokens on 2": Shares.equal(27, 4, 2),
    "12 heads on 5": Shares.equal(40, 12, 5),
    "3 heads on 8": Shares.equal(64, 3, 8),
    "24 heads on 7": Shares.equal(70, 24, 7),
    "more ranks than rows": Shares.equal(2, 1, 3),
    "a rank without tokens": Shares(num_heads=3, tokens=(10, 0, 7), work=split(51, 3)),
    "a rank without work": Shares(num_heads=3, tokens=(10, 7), work=(51, 0)),
    "all work where no tokens are": Shares(num_heads=2, tokens=(9, 0), work=(0, 18)),
    "text": Shares.equal(27, 3, 2, num_replicated=5),
    "text, and 24 heads on 7": Shares.equal(50, 24, 7, num_replicated=3),
    "text, and a rank without tokens": Shares(
        num_heads=3, tokens=(8, 0), work=split(33, 2), num_replicated=3
    ),
    "a helper": Shares.equal(27, 3, 1).with_helpers([40]),
    "a helper with all work, one with none": Shares.equal(27, 3, 2).with_helpers([81, 0]),
    "text, and a helper": Shares.equal(27, 3, 2, num_replicated=5).with_helpers([30]),
    "text, and more helpers than others": Shares.equal(27, 4, 2, num_replicated=5).with_helpers([9, 0, 70]),
    "uneven everything": Shares(num_heads=5, tokens=(1, 20, 3, 0), work=(40, 3, 70, 7)),
}


def random_qkv(shares: Shares) -> tuple[Tensor, Tensor, Tensor]:
    return random_rows(shares.num_rows, shares.num_heads)


def random_rows(num_rows: int, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random queries, keys and values of `num_rows` tokens."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, num_rows, num_heads, DEPTH, generator=generator) for _ in range(3))
    return q, k, v


def random_shares(numbers: random.Random, num_holders: int, num_helpers: int) -> Shares:
    """Return shares of random work for helpers, on one of several shapes."""
    tokens, heads, text = numbers.choice([(27, 3, 0), (64, 5, 5), (324, 2, 0), (100, 4, 7)])
    own = Shares.equal(tokens, heads, num_holders, num_replicated=text)
    ends = sorted(numbers.randint(0, sum(own.work)) for _ in range(num_helpers))
    return own.with_helpers([end - before for before, end in zip([0, *ends], ends, strict=False)])
