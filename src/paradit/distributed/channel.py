"""Tensors on their way from a stage to the next: from one rank to others, in order, a few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from paradit.distributed.world import World
from paradit.trace.spans import CHANNEL, span


class Channel:
    """From rank `sender` to `receivers`, of which it may be one itself. Every rank of these makes it."""

    def __init__(self, world: World | None, sender: int, receivers: Sequence[int], depth: int) -> None:
        """depth: how many messages may be on their way before `send` waits. world: None for one process."""
        self._world, self._sender, self._depth = world, sender, depth
        self._me = world.rank if world else 0
        self._others = [rank for rank in receivers if rank != sender]
        self._keeps = sender in receivers
        self._kept: deque[Tensor] = deque()
        self._leaving: deque[tuple[list[dist.Work], Tensor]] = deque()

    def send(self, tensor: Tensor) -> None:
        """The sender calls it. Waits only while more messages than `depth` have not been taken."""
        if self._keeps:
            self._kept.append(tensor)
        if self._others:
            assert self._world is not None
            message = tensor.contiguous()
            works = [self._world.send(message, rank) for rank in self._others]
            self._leaving.append((works, message))
        while len(self._leaving) > self._depth:
            self._wait_for_oldest()

    def receive(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The next message, which has this shape and dtype; each receiver calls it."""
        if self._me == self._sender:
            return self._kept.popleft()
        assert self._world is not None
        message = torch.empty(tuple(shape), dtype=dtype, device=device)
        with span(f"wait for rank {self._sender}", CHANNEL):
            self._world.receive(message, self._sender)
        return message

    def close(self) -> None:
        """Wait until all that was sent has been taken."""
        while self._leaving:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        works, _ = self._leaving.popleft()
        with span("wait until taken", CHANNEL, ready=len(self._leaving) + 1, by=self._others):
            for work in works:
                work.wait()
