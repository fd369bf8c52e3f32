"""One-way queues that carry tensors from a rank to others, with a limited number of tensors in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from paradit.distributed.world import World
from paradit.trace.spans import CHANNEL, span


class Channel:
    """Queue of tensors from rank `sender` to the ranks `receivers`, which may include the sender.

    Each of these ranks creates a Channel of its own.
    """

    def __init__(self, world: World | None, sender: int, receivers: Sequence[int], depth: int) -> None:
        """Open this rank's end of a queue of tensors between ranks.

        world: the processes that work together; None: this process alone. sender, receivers: ranks in it.
        depth: number of messages that may be in flight before `send` waits.
        """
        self._world, self._sender, self._depth = world, sender, depth
        self._me = world.rank if world else 0
        self._others = [rank for rank in receivers if rank != sender]
        self._keeps = sender in receivers
        self._kept: deque[Tensor] = deque()
        self._leaving: deque[tuple[list[dist.Work], Tensor]] = deque()

    def send(self, tensor: Tensor) -> None:
        """Queue a tensor for all receiving ranks; only the sending rank calls this.

        If more than `depth` messages have not been received yet, it waits until no more than `depth` are
        left. An empty tensor is not sent to other ranks.
        """
        if self._keeps:
            self._kept.append(tensor)
        if self._others and tensor.numel():
            assert self._world is not None
            message = tensor.contiguous()
            works = [self._world.send(message, rank) for rank in self._others]
            # The message is kept with its work: its memory must not be reused before it is sent.
            self._leaving.append((works, message))
        while len(self._leaving) > self._depth:
            self._wait_for_oldest()

    def receive(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the next tensor from the sending rank, once it has arrived; each receiving rank calls this.

        shape, dtype: the tensor's shape and dtype, which the receiver has to know beforehand.
        """
        if self._me == self._sender:
            return self._kept.popleft()
        assert self._world is not None
        message = torch.empty(tuple(shape), dtype=dtype, device=device)
        with span(f"wait for rank {self._sender}", CHANNEL):
            self._world.receive(message, self._sender)
        return message

    def close(self) -> None:
        """Wait until every message that was sent through this queue has been received."""
        while self._leaving:
            self._wait_for_oldest()

    def _wait_for_oldest(self) -> None:
        works, _ = self._leaving.popleft()
        with span("wait until taken", CHANNEL, ready=len(self._leaving) + 1, by=self._others):
            for work in works:
                work.wait()


class Expected:
    """Receiving end of a link between two ranks, for messages whose shapes are known beforehand.

    Receives are posted in advance, so that messages travel while the receiving rank works on earlier ones.
    Buffers are reused: a received tensor is valid only until the next call of `receive`. Empty messages do
    not travel.
    """

    def __init__(
        self,
        world: World,
        sender: int,
        shapes: Iterator[Sequence[Sequence[int]]],
        dtype: torch.dtype,
        ahead: int = 2,
    ) -> None:
        """Open the receiving end of a link between two ranks, and post its first receives.

        shapes: iterator that yields, for each call of `receive`, the shapes of the tensors which that call
        returns. ahead: number of calls for which receives are posted in advance.
        """
        self._world, self._sender, self._shapes = world, sender, shapes
        self._coming: deque[tuple[list[dist.Work], list[Tensor]]] = deque()
        # One more than receives are in advance: the caller still uses the latest messages.
        self._buffers = deque(torch.empty(0, dtype=dtype, device=world.device) for _ in range(ahead + 1))
        for _ in range(ahead):
            self._post()

    def receive(self) -> list[Tensor]:
        """Wait for the next tensors from the sending rank, and return them.

        They are views of a buffer, valid only until `receive` is called again.
        """
        self._post()  # first, so that this message can travel during the wait
        works, messages = self._coming.popleft()
        with span(f"wait for rank {self._sender}", CHANNEL):
            for work in works:
                work.wait()
        return messages

    def _post(self) -> None:
        shapes = next(self._shapes, None)
        if shapes is None:
            return
        sizes = [prod(shape) for shape in shapes]
        buffer = self._buffers.popleft()  # the one that was used longest ago
        if buffer.numel() < sum(sizes):
            buffer = buffer.new_empty(sum(sizes))
        self._buffers.append(buffer)
        parts = zip(torch.split(buffer[: sum(sizes)], sizes), shapes, strict=True)
        messages = [part.view(*shape) for part, shape in parts]
        works = [self._world.receive_later(each, self._sender) for each in messages if each.numel()]
        self._coming.append((works, messages))
