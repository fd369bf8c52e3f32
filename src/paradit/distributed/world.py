"""Processes that work together: joining them, and the groups among them.

A `World` is passed along; nothing here is kept in module globals. (torch itself keeps one default group a
process, so a process is in one world at a time.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from paradit.distributed.joining import Joining
from paradit.distributed.transport import Transport
from paradit.launched import Launched


@dataclass(frozen=True, kw_only=True)
class World:
    """All processes of a run, or some of them that work together, as one of them sees it."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    """None: all processes."""
    ranks: tuple[int, ...] | None = None
    """The numbers of its ranks among all processes; None: all processes."""
    store: Store | None = None
    """Where all processes leave words for each other; None where somebody else made the processes' group."""

    def part(self, ranks: Sequence[int], *, own_group: bool = False) -> World | None:
        """A world of some of these ranks, in their order; None where this rank is not among them.

        Every rank must call it, with the same ranks. own_group: its messages keep apart from those of this
        world, also where it has the same ranks.
        """
        if list(ranks) == list(range(self.size)) and not own_group:
            return self
        numbers = tuple(self._global(rank) for rank in ranks)
        group = dist.new_group(list(numbers))
        if self.rank not in ranks:
            return None
        rank = list(ranks).index(self.rank)
        return replace(self, rank=rank, size=len(ranks), group=group, ranks=numbers)

    def transport(self, *, point_to_point: bool = False) -> Transport:
        """A transport among all ranks; `point_to_point` as for `Transport`."""
        return Transport(self.group or dist.group.WORLD, self.ranks, point_to_point=point_to_point)

    def tell(self, word: str, about: str = "") -> None:
        """Leave a word for the other processes, and what is to be known about it; then it is there."""
        assert self.store is not None
        self.store.set(word, about)
        self.store.check([word])  # the answer comes after what was set: TCPStore itself does not wait for any

    def word(self, word: str) -> str:
        """What was left about a word that was `told`."""
        assert self.store is not None
        about: bytes = self.store.get(word)
        return about.decode()

    def told(self, word: str) -> bool:
        """Whether a process has left this word; it does not wait for it."""
        assert self.store is not None
        return bool(self.store.check([word]))

    def transports(self, groups: Sequence[Sequence[int]]) -> list[Transport | None]:
        """A transport for each group of ranks; None where this rank is not in it.

        Every rank must call it, with the same groups in the same order. No more groups are made than are
        needed: each costs memory on a GPU, and threads that wake up again and again on a CPU.
        """
        if [list(ranks) for ranks in groups] == [list(range(self.size))]:
            return [self.transport()]
        if all(len(ranks) == 1 for ranks in groups):
            return [Transport(None) if self.rank in ranks else None for ranks in groups]
        # In a part of the processes the others do not take part in making groups.
        alone = self.group is not None
        mine = [ranks for ranks in groups if self.rank in ranks] if alone else groups
        made = {
            tuple(ranks): dist.new_group(
                [self._global(rank) for rank in ranks], use_local_synchronization=alone
            )
            for ranks in mine
        }
        return [
            Transport(made[tuple(ranks)], [self._global(rank) for rank in ranks])
            if self.rank in ranks
            else None
            for ranks in groups
        ]

    def send(self, tensor: Tensor, rank: int) -> dist.Work:
        """Begin to send a contiguous tensor to another rank; it must not change until it is gone."""
        work = dist.isend(tensor, self._global(rank), group=self.group)
        assert work is not None  # this rank is in the group
        return work

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Fill a tensor with what another rank sends."""
        dist.recv(tensor, self._global(rank), group=self.group)

    def receive_later(self, tensor: Tensor, rank: int) -> dist.Work:
        """Begin to fill a contiguous tensor with what another rank sends; it is there after `wait`."""
        work = dist.irecv(tensor, group=self.group, group_src=rank)
        assert work is not None
        return work

    def way_back(self) -> World:
        """The same ranks, for messages that must not wait behind those of this world.

        NCCL runs the messages of two ranks in order, in both directions: a receive that is posted ahead
        would hold up what is sent after it. Every rank must call it.
        """
        if self.device.type != "cuda":
            return self
        ranks = [self._global(rank) for rank in range(self.size)]
        return replace(self, group=dist.new_group(ranks, use_local_synchronization=self.group is not None))

    def _global(self, rank: int) -> int:
        return rank if self.ranks is None else self.ranks[rank]


def current_world(device: torch.device) -> World | None:
    """The world of the process group that somebody else has initialised, if anybody has."""
    if not dist.is_initialized():
        return None
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


@contextmanager
def join_world(
    rank: int,
    size: int,
    meet: Path | Launched,
    *,
    device: torch.device | None = None,
    timeout: float = 600.0,
    tell: Callable[[str], None] | None = None,
) -> Iterator[World]:
    """Be rank `rank` of `size` processes that meet: by a file of that name, or where a launcher has said.

    gloo on CPUs, NCCL on GPUs. A collective that takes longer than `timeout` seconds raises RuntimeError.
    Signals are heeded while others are waited for; `tell` is then told, after a few seconds, for whom.
    The group is taken down only on a normal end: after an error the others may never come to it, and
    waiting for them would hang.
    """
    device = device or torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = Joining(rank, size, meet, device, timedelta(seconds=timeout)).join(tell)
    yield World(rank=rank, size=size, device=device, store=PrefixStore("words", store))
    dist.barrier()
    dist.destroy_process_group()
