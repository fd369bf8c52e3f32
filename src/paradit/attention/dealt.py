"""Attention on ranks, or teams of ranks, that hold whole groups of a model's sparse patterns.

A sparse layer needs no messages between teams. Before the next layer, which has other groups, hidden states
move once. `attention.dealing` decides which rank holds which tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from paradit.attention.base import Deal, Dealt, Kernel, Layout, Projection, Site, Wait
from paradit.attention.chunked import chunked
from paradit.attention.dealing import Dealing, dealings, team_shares
from paradit.attention.patterns import Pattern
from paradit.attention.registry import Choice
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares
from paradit.distributed.transport import Transport


def join(sharers: Sharers, choice: Choice, kernel: Kernel) -> Callable[[Shares], Dealt]:  # noqa: ARG001
    """Set up skiparse attention on ranks; return a function that makes this rank's attention.

    The returned function takes a `Shares`, of which this form uses the numbers of tokens, heads and ranks.
    """
    return lambda shares: DealtByGroup(shares, sharers.transport, kernel)


class DealtByGroup(Dealt):
    """Attention on ranks to which tokens are dealt by the groups of each sparse layer's pattern."""

    def __init__(self, shares: Shares, transport: Transport, kernel: Kernel) -> None:
        self._shares, self._transport, self._kernel = shares, transport, kernel
        self._made: dict[tuple[Pattern, ...], dict[Pattern, GroupDeal]] = {}

    def by_layer(self, sites: Sequence[Site], device: torch.device) -> list[Deal]:
        """Return how tokens are dealt in each layer.

        Full attention takes tokens in any order, so they stay as they are in the sparse layer before it.
        Raises ValueError if no layer is sparse.
        """
        patterns = [site.pattern for site in sites]
        sparse = tuple(dict.fromkeys(pattern for pattern in patterns if pattern is not None))
        if not sparse:
            raise ValueError("tokens cannot be dealt by group: no layer of the model has sparse attention")
        deals, now, found = self._deals(sparse, device), sparse[0], list[Deal]()
        for pattern in patterns:
            now = pattern or now
            found.append(deals[now])
        return found

    def _deals(self, patterns: tuple[Pattern, ...], device: torch.device) -> dict[Pattern, GroupDeal]:
        if patterns not in self._made:
            shares = self._shares
            dealt = dealings(patterns, shares.num_tokens, shares.num_ranks)
            self._made[patterns] = {
                pattern: GroupDeal(dealing, shares.num_heads, self._transport, self._kernel, device)
                for pattern, dealing in dealt.items()
            }
        return self._made[patterns]


class GroupDeal(Deal):
    """Tokens as they are dealt to ranks by the groups of one pattern."""

    def __init__(
        self,
        dealing: Dealing,
        num_heads: int,
        transport: Transport,
        kernel: Kernel,
        device: torch.device,
    ) -> None:
        """Plan attention in this dealing.

        transport: connection among all ranks that share the tokens.
        """
        self.dealing, self._transport, self._kernel = dealing, transport, kernel
        rank = transport.rank
        self._indices = [indices(tokens, device) for tokens in dealing.held]
        self.held = self._indices[rank]
        self._sizes = dealing.group_sizes(rank)
        shares = team_shares(dealing, range(dealing.num_ranks), num_heads)
        self._among_all = chunked(
            UlyssesExchange(shares, transport), self._in_order(range(dealing.num_ranks))
        )
        self._team = team = dealing.team(rank)
        within = team_shares(dealing, team, num_heads)
        self._in_team = chunked(UlyssesExchange(within, transport.among(team)), self._in_order(team))
        self._moves: dict[Dealing, Move] = {}

    def _in_order(self, ranks: Sequence[int]) -> Kernel:
        """Return a kernel that puts the tokens of some ranks into the order of the video.

        Each query then meets its keys in the same order as in one process, and gets the same bits. The kernel
        is called with the tokens of one rank after another.
        """
        held = torch.cat([self._indices[rank] for rank in ranks])
        order = held.argsort()
        back = order.argsort()

        def ordered(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            key, value = key[:, order], value[:, order]
            if query.shape[1] != key.shape[1]:  # some rows of a head
                return self._kernel(query, key, value)
            return self._kernel(query[:, order], key, value)[:, back]

        return ordered

    def attend(self, site: Site, projection: Projection, layout: Layout) -> Generator[Wait, None, Tensor]:
        """Compute attention of one layer: full, or within the groups of this dealing's pattern."""
        if site.pattern is None:
            return (yield from self._among_all(site, projection, layout))
        if site.pattern != self.dealing.pattern:
            raise ValueError(f"tokens are dealt by {self.dealing.pattern}, and {site} has another pattern")
        if len(self._team) > 1:  # the ranks share one group, in which all tokens attend to all
            return (yield from self._in_team(replace(site, pattern=None), projection, layout))
        return self._by_groups(projection, layout)

    def _by_groups(self, projection: Projection, layout: Layout) -> Tensor:
        """Compute attention in each of this rank's groups, which are one after the other among its tokens."""
        value, key, query = projection
        query, key = layout.rope.apply(query), layout.rope.apply(key)
        parts = zip(*(torch.split(x, self._sizes, dim=1) for x in (query, key, value)), strict=True)
        attended = [self._kernel(*part) if part[0].shape[1] else part[0] for part in parts]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)

    def move(self, hidden_states: Tensor, to: Deal) -> Generator[Wait, None, Tensor]:
        """Move hidden states [B, tokens, width] to the ranks that hold their tokens in another dealing."""
        assert isinstance(to, GroupDeal)
        if to.dealing not in self._moves:
            self._moves[to.dealing] = Move.between(
                self.dealing, to.dealing, self._transport.rank, self.held.device
            )
        return (yield from self._moves[to.dealing].run(hidden_states, self._transport))

    def gather(self, values: Tensor) -> Tensor:
        """Return the values [B, S, D] of all tokens, in their order in the video, on every rank."""
        batch, _, width = values.shape
        sizes = [batch * len(tokens) * width for tokens in self.dealing.held]
        flat = values.reshape(-1)
        received = self._transport.start([flat] * len(sizes), sizes).wait()
        out = values.new_empty(batch, self.dealing.num_tokens, width)
        for tokens, part in zip(self._indices, received, strict=True):
            out[:, tokens] = part.view(batch, len(tokens), width)
        return out


@dataclass(frozen=True)
class Move:
    """One rank's part in the move of all tokens from one dealing to another."""

    leaving: list[Tensor]
    """Places, among this rank's tokens, of those that are sent to each rank, in the order of the video."""
    coming: list[Tensor]
    """Places, among this rank's new tokens, of those that come from each rank, in the order of the video."""

    @classmethod
    def between(cls, old: Dealing, new: Dealing, rank: int, device: torch.device) -> Self:
        """Plan the part of `rank` in the move from one dealing to another."""
        leaving: list[list[int]] = [[] for _ in range(old.num_ranks)]
        coming: list[list[int]] = [[] for _ in range(old.num_ranks)]
        for (source, before), (target, after) in zip(old.holder, new.holder, strict=True):
            # Tokens travel between two ranks in the order of the video.
            if source == rank:
                leaving[target].append(before)
            if target == rank:
                coming[source].append(after)
        return cls(*([indices(places, device) for places in each] for each in (leaving, coming)))

    def run(self, hidden_states: Tensor, transport: Transport) -> Generator[Wait, None, Tensor]:
        """Send and receive hidden states [B, tokens, width]; return those of this rank's new tokens."""
        batch, _, width = hidden_states.shape
        outgoing = [hidden_states[:, places].reshape(-1) for places in self.leaving]
        sizes = [batch * len(places) * width for places in self.coming]
        transfer = transport.start(outgoing, sizes)
        yield transfer
        moved = hidden_states.new_empty(batch, sum(map(len, self.coming)), width)
        for places, part in zip(self.coming, transfer.wait(), strict=True):
            moved[:, places] = part.view(batch, len(places), width)
        return moved


def indices(places: Sequence[int], device: torch.device) -> Tensor:
    """Return indices of tokens as a tensor."""
    return torch.tensor(places, dtype=torch.long, device=device)
