"""Messages between the ranks of a layer pipeline: latents, hidden states and predictions.

A layer slice is a part of the model's layers, on one or several ranks. Rank 0, the leader, sends latents to
the other ranks of the first slice. Each slice sends hidden states to the next slice. The last slice sends
predictions back to the leader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from paradit.distributed.tensor_queue import Channel, Expected
from paradit.sampling.layer_split import LayerShare
from paradit.scheduling.layer_pipeline import PipelineGrid, in_flight

HOP_DEPTH = 2
"""Number of tensors that may be on their way to the next layer slice before the sending rank waits."""

Shapes = Sequence[Sequence[int]]


class Expectations(Protocol):
    """Interface that yields the shapes of the messages that a rank will receive, in order.

    An iterator ends once no more messages come. For a video without an end, it may never end.
    """

    def latents(self) -> Iterator[Shapes]:
        """Yield the shapes of the latents that the first layer slice embeds."""

    def hops(self) -> Iterator[Shapes]:
        """Yield the shapes of the hidden states that this rank receives from the previous layer slice."""

    def predictions(self, place: int) -> Iterator[Shapes]:
        """Yield the shapes of the predictions that one of the ranks of the last layer slice sends.

        place: index of that rank among those that share its tokens.
        """


class PipelineLinks:
    """One rank's connections to the other ranks of a layer pipeline.

    Messages are received in the order in which frame blocks take their steps, and receives are posted in
    advance.
    """

    def __init__(
        self, share: LayerShare | None, expected: Expectations, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Open this rank's connections, and post the first receives.

        share: this rank's part in the pipeline; None for one process. expected: object that yields the shapes
        of the messages to receive.
        """
        grid, rank = (share.grid, share.world.rank) if share else (PipelineGrid(), 0)
        world, back = (share.world, share.way_back) if share else (None, None)
        self._dtype, self._device, place = dtype, device, grid.slice_of(rank)
        self.is_leader = rank == 0
        self.is_first, self.is_last = place == 0, place == grid.num_slices - 1
        mates = range(1, grid.slice_ranks) if self.is_leader else []
        self._to_mates = Channel(world, 0, list(mates), HOP_DEPTH)
        following = [] if self.is_last else [rank + grid.slice_ranks]
        self._to_next = Channel(world, rank, following, HOP_DEPTH)
        # Deep enough for all predictions that the leader may be waiting for, so that the last slice never
        # waits.
        self._to_leader = Channel(back, rank, [0], in_flight(grid.num_slices))
        if world and self.is_first and not self.is_leader:
            self._from_leader = Expected(world, 0, expected.latents(), dtype)
        if world and not self.is_first:
            self._from_before = Expected(world, rank - grid.slice_ranks, expected.hops(), dtype)
        self._predictions: list[list[Expected | None]] = []
        """For each guidance branch, the receivers of predictions from those ranks of the last layer slice
        that compute the branch. Each of these ranks computes the prediction for some of the tokens; they are
        in token order. None stands for this rank's own prediction."""
        if self.is_leader:
            last = grid.num_ranks - grid.slice_ranks
            for branch in range(grid.cfg_degree):
                # The ranks of the last slice are numbered by branch, then by share of the tokens.
                senders = enumerate(range(grid.sharers), last + branch * grid.sharers)
                self._predictions.append([
                    Expected(back, sender, expected.predictions(place), dtype) if back and sender else None
                    for sender, place in senders
                ])  # fmt: skip

    def share_latents(self, latents: Tensor) -> None:
        """Send latents from the leader, rank 0, to the other ranks of the first layer slice."""
        self._to_mates.send(latents)

    def latents(self) -> Tensor:
        """Receive the next latents from the leader, rank 0, and return them."""
        (latents,) = self._from_leader.receive()
        return latents

    def hand_on(self, changing: Sequence[Tensor]) -> None:
        """Send hidden states to the next layer slice."""
        for tensor in changing:
            self._to_next.send(tensor)

    def handed_on(self) -> list[Tensor]:
        """Receive the next hidden states from the layer slice before this one, and return them."""
        return self._from_before.receive()

    def send_back(self, prediction: Tensor) -> None:
        """Send a prediction from the last layer slice to the leader, rank 0."""
        self._to_leader.send(prediction)

    def predictions(self) -> list[Tensor]:
        """Receive and return the next prediction of each guidance branch, [1, S, patch values] of all tokens.

        Only the leader, rank 0, calls it.
        """
        return [torch.cat([self._part(each) for each in branch], dim=1) for branch in self._predictions]

    def _part(self, coming: Expected | None) -> Tensor:
        # In a pipeline of a single slice, the leader computes predictions, too.
        if coming is None:
            return self._to_leader.receive((), self._dtype, self._device)
        (part,) = coming.receive()
        return part

    def close(self) -> None:
        """Wait until all messages that this rank sent to other ranks of the pipeline have been received."""
        for channel in (self._to_mates, self._to_next, self._to_leader):
            channel.close()
