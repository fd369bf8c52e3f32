"""What travels between the ranks of a layer pipeline: latents in, hidden states on, predictions back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from paradit.distributed.channel import Channel, Expected
from paradit.sampling.layer_split import LayerShare
from paradit.scheduling.layer_pipeline import StageGrid, in_flight

HOP_DEPTH = 2
"""How many hidden states may be on their way to the next rank before this one waits."""

Shapes = Sequence[Sequence[int]]


class Expectations(Protocol):
    """The shapes of what comes, for each time, without end or until nothing comes any more."""

    def latents(self) -> Iterator[Shapes]:
        """What the first stage embeds."""

    def hops(self) -> Iterator[Shapes]:
        """What this rank gets of the stage before."""

    def predictions(self, place: int) -> Iterator[Shapes]:
        """What a rank of the last stage sends, by its place among those that share tokens."""


class StageLinks:
    """One rank's. Everything is received in the queue's order, and receives are posted ahead."""

    def __init__(
        self, share: LayerShare | None, expected: Expectations, dtype: torch.dtype, device: torch.device
    ) -> None:
        """share: None for one process."""
        grid, rank = (share.grid, share.world.rank) if share else (StageGrid(), 0)
        world, back = (share.world, share.way_back) if share else (None, None)
        self._dtype, self._device, stage = dtype, device, grid.stage(rank)
        self.is_leader = rank == 0
        self.is_first, self.is_last = stage == 0, stage == grid.num_stages - 1
        mates = range(1, grid.stage_ranks) if self.is_leader else []
        self._to_mates = Channel(world, 0, list(mates), HOP_DEPTH)
        following = [] if self.is_last else [rank + grid.stage_ranks]
        self._to_next = Channel(world, rank, following, HOP_DEPTH)
        self._to_leader = Channel(back, rank, [0], in_flight(grid.num_stages))
        if world and self.is_first and not self.is_leader:
            self._from_leader = Expected(world, 0, expected.latents(), dtype)
        if world and not self.is_first:
            self._from_before = Expected(world, rank - grid.stage_ranks, expected.hops(), dtype)
        self._predictions: list[list[Expected | None]] = []
        """By branch and place; None: this rank's own."""
        if self.is_leader:
            last = grid.num_ranks - grid.stage_ranks
            for branch in range(grid.cfg_degree):
                senders = enumerate(range(grid.sharers), last + branch * grid.sharers)
                self._predictions.append([
                    Expected(back, sender, expected.predictions(place), dtype) if back and sender else None
                    for sender, place in senders
                ])  # fmt: skip

    def share_latents(self, latents: Tensor) -> None:
        """From the leader to the others of the first stage."""
        self._to_mates.send(latents)

    def latents(self) -> Tensor:
        """What the leader has shared."""
        (latents,) = self._from_leader.receive()
        return latents

    def hand_on(self, changing: Sequence[Tensor]) -> None:
        """To the next stage."""
        for tensor in changing:
            self._to_next.send(tensor)

    def handed_on(self) -> list[Tensor]:
        """By the stage before."""
        return self._from_before.receive()

    def send_back(self, prediction: Tensor) -> None:
        """From the last stage to the leader."""
        self._to_leader.send(prediction)

    def predictions(self) -> list[Tensor]:
        """On the leader, by branch: [1, S, patch values] of all tokens; the oldest that are missing."""
        return [torch.cat([self._part(each) for each in branch], dim=1) for branch in self._predictions]

    def _part(self, coming: Expected | None) -> Tensor:
        if coming is None:
            return self._to_leader.receive((), self._dtype, self._device)
        (part,) = coming.receive()
        return part

    def close(self) -> None:
        """Wait until all that was sent has been taken."""
        for channel in (self._to_mates, self._to_next, self._to_leader):
            channel.close()
