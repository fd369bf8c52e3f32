"""Groups of processes that work together ("worlds"): joining, messages, and a key-value store.

Code that needs a `World` gets it as an argument; this module has no global state. (torch itself has one
default process group per process, so a process is in one world of `join_world` at a time.)
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
from paradit.launcher_environment import Launched


@dataclass(frozen=True, kw_only=True)
class World:
    """Group of processes that work together, some or all of a run's, and this process's rank in it."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    """Process group of these ranks; None: the default process group."""
    ranks: tuple[int, ...] | None = None
    """Ranks of these processes in the default process group, in order; None: all ranks of that group."""
    store: Store | None = None
    """Key-value store by which processes notify each other; None if other code made the process group."""

    def part(self, ranks: Sequence[int], *, own_group: bool = False) -> World | None:
        """Return a world of some of these ranks, in the given order; None if this rank is not among them.

        Every rank of this world must call it, with the same ranks. own_group: whether to create a new process
        group even if the ranks are all those of this world. Messages of the two worlds then do not queue
        behind each other.
        """
        if list(ranks) == list(range(self.size)) and not own_group:
            return self
        numbers = tuple(self._global(rank) for rank in ranks)
        # torch requires every rank to call this, even those that are not in the group.
        group = dist.new_group(list(numbers))
        if self.rank not in ranks:
            return None
        rank = list(ranks).index(self.rank)
        return replace(self, rank=rank, size=len(ranks), group=group, ranks=numbers)

    def transport(self, *, point_to_point: bool = False) -> Transport:
        """Return a connection among all ranks of this world, for all-to-all exchanges of tensors.

        point_to_point: whether all messages are sent rank to rank, never by a collective, so that ranks
        between which nothing travels need not take part.
        """
        return Transport(self.group or dist.group.WORLD, self.ranks, point_to_point=point_to_point)

    def publish(self, key: str, text: str = "") -> None:
        """Publish a text under a key in the store of all processes; return once all processes can see it."""
        assert self.store is not None
        self.store.set(key, text)
        self.store.check([key])  # TCPStore.set does not wait; an answer to `check` means that it is done

    def lookup(self, key: str) -> str:
        """Wait until a key is published in the store of all processes, and return its text."""
        assert self.store is not None
        text: bytes = self.store.get(key)
        return text.decode()

    def is_published(self, key: str) -> bool:
        """Return whether a key is published in the store of all processes, without waiting for it."""
        assert self.store is not None
        return bool(self.store.check([key]))

    def transports(self, groups: Sequence[Sequence[int]]) -> list[Transport | None]:
        """Return a connection (`Transport`) for each group of ranks; None for each group without this rank.

        Every rank must call it, with the same groups in the same order. Makes as few process groups as
        possible, because each costs memory on a GPU, and threads that keep waking up on a CPU.
        """
        if [list(ranks) for ranks in groups] == [list(range(self.size))]:
            return [self.transport()]
        if all(len(ranks) == 1 for ranks in groups):  # nothing travels
            return [Transport(None) if self.rank in ranks else None for ranks in groups]
        # If this world is only a part of all processes, the others do not take part in making its groups.
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
        """Begin to send a contiguous tensor to a rank, and return the work to wait for.

        The tensor must not change until the work is done.
        """
        work = dist.isend(tensor, self._global(rank), group=self.group)
        assert work is not None  # this rank is in the group
        return work

    def receive(self, tensor: Tensor, rank: int) -> None:
        """Fill a tensor with what another rank sends, and return once it has arrived."""
        dist.recv(tensor, self._global(rank), group=self.group)

    def receive_later(self, tensor: Tensor, rank: int) -> dist.Work:
        """Begin to receive into a contiguous tensor from another rank, and return the work to wait for."""
        work = dist.irecv(tensor, group=self.group, group_src=rank)
        assert work is not None
        return work

    def way_back(self) -> World:
        """Return a world of the same ranks whose messages do not queue behind those of this world.

        It is for messages in the opposite direction. NCCL runs the messages between two ranks in order, in
        both directions, so a receive that is posted in advance would hold up what is sent after it. Every
        rank must call this. Returns this world itself on CPUs.
        """
        if self.device.type != "cuda":
            return self
        ranks = [self._global(rank) for rank in range(self.size)]
        return replace(self, group=dist.new_group(ranks, use_local_synchronization=self.group is not None))

    def _global(self, rank: int) -> int:
        return rank if self.ranks is None else self.ranks[rank]


def current_world(device: torch.device) -> World | None:
    """Return the world of the default process group, if other code has initialised it; otherwise None."""
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
    warn: Callable[[str], None] | None = None,
) -> Iterator[World]:
    """Join the process group of `size` processes as rank `rank`, and leave it after the `with` body.

    The process group uses gloo on CPUs and NCCL on GPUs. meet: where ranks find each other: the file of a
    `FileStore`, or the address and port that a launcher has declared. timeout: seconds after which a
    collective raises RuntimeError. warn: function that is called after a few seconds with a message about
    missing ranks. Signals are handled while the rank waits for other ranks.

    The process group is destroyed only if the body ends normally. After an error the other ranks may never
    leave the group, and destroying it would wait for them forever.
    """
    device = device or torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = Joining(rank, size, meet, device, timedelta(seconds=timeout)).join(warn)
    yield World(rank=rank, size=size, device=device, store=PrefixStore("words", store))
    dist.barrier()
    dist.destroy_process_group()
