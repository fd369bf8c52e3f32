"""Waits for messages: none is missing or misplaced, because late messages in any order change nothing.

Every rank is a thread of this process. A message leaves after a random delay and is read only then: a buffer
that was overwritten meanwhile arrives wrong, and one that is used before it was waited for holds NaN.
"""

import random
import threading
from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_in_memory import FORMS, Form, Unrotated, layout_of, of_rank, random_qkv
from paradit.attention.base import Attend, Site, Wait
from paradit.attention.ring import ring
from paradit.distributed.shares import Shares
from paradit.parallel.run_blocks import run_interleaved

SECONDS = 0.01
LAYERS = 3


class SlowNetwork:
    """Network between the ranks that delays every message at random."""

    def __init__(self, num_ranks: int, seed: int) -> None:
        self.num_ranks, self.random = num_ranks, random.Random(seed)
        self.arrived: dict[tuple[int, int, int], Tensor] = {}
        self.changed = threading.Condition()

    def send(self, key: tuple[int, int, int], message: Tensor) -> None:
        threading.Timer(self.random.random() * SECONDS, self._arrive, (key, message)).start()

    def _arrive(self, key: tuple[int, int, int], message: Tensor) -> None:
        with self.changed:
            self.arrived[key] = message.clone()
            self.changed.notify_all()

    def take(self, key: tuple[int, int, int]) -> Tensor:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.arrived, timeout=20), f"{key} never came"
            return self.arrived.pop(key)


class SlowTransport:
    """One rank's end of a `SlowNetwork`, with the interface of `Transport`."""

    def __init__(self, network: SlowNetwork, rank: int) -> None:
        self.network, self.rank, self.num_ranks, self.started = network, rank, network.num_ranks, 0

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> "SlowTransfer":
        for rank, message in enumerate(outgoing):
            self.network.send((self.started, self.rank, rank), message)
        self.started += 1
        return SlowTransfer(self, self.started - 1, sizes)


class SlowTransfer:
    def __init__(self, transport: SlowTransport, number: int, sizes: Sequence[int]) -> None:
        self.transport, self.number = transport, number
        self.received = [torch.full((size,), torch.nan) for size in sizes]
        self.pending = True

    def wait(self) -> list[Tensor]:
        if self.pending:
            for rank, buffer in enumerate(self.received):
                buffer.copy_(self.transport.network.take((self.number, rank, self.transport.rank)))
        self.pending = False
        return self.received


def layers(attend: Any, x: Tensor, layout: Unrotated) -> Generator[Wait, None, Tensor]:
    """Run a few attentions one after the other, each with different q, k and v."""
    for layer in range(LAYERS):
        # Tensors are made anew and overwritten afterwards, like memory that an allocator reuses.
        own = [x * factor for factor in (1.0, 0.3, 0.5)]
        x = (yield from attend(Site(layer), iter(own), layout)) + x
        for tensor in own:
            tensor.fill_(torch.nan)
    return x


def ring_form(shares: Shares, transport: SlowTransport) -> Attend:
    return ring(shares.tokens, transport)  # type: ignore[arg-type]


def on_threads(shares: Shares, form: Form, seed: int) -> list[Tensor]:
    """Run two interleaved branches on every rank, and return each rank's tokens."""
    network = SlowNetwork(shares.num_ranks, seed)
    branches = random_qkv(shares)[:2]
    results: dict[int, list[Tensor]] = {}

    def rank(number: int) -> None:
        transport = SlowTransport(network, number)
        attend = form(shares, transport)
        works = []
        for branch in branches:
            (x,) = of_rank(shares, number, branch)
            works.append(layers(attend, x, layout_of(shares, number)))
        results[number] = run_interleaved(works)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(shares.num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == shares.num_ranks
    return [torch.cat(results[number]) for number in range(shares.num_ranks)]


HELPED = [(FORMS[name], helpers) for name in ("plain", "2 chunks") for helpers in ((20,), (7, 0))]


@pytest.mark.parametrize(
    ("form", "helpers"), [*((form, ()) for form in (*FORMS.values(), ring_form)), *HELPED]
)
@pytest.mark.parametrize("text", [0, 3])
def test_delays_change_nothing(form: Form, helpers: tuple[int, ...], text: int) -> None:
    shares = Shares.equal(26, 3, 3 - len(helpers), num_replicated=text).with_helpers(helpers)
    first, second = (on_threads(shares, form, seed) for seed in (0, 1))
    for rank in range(shares.num_ranks):
        assert torch.equal(first[rank], second[rank])
    first = first[: shares.num_holders]
    (alone,) = on_threads(Shares.equal(26, 3, 1, num_replicated=text), FORMS["plain"], seed=2)
    tokens = torch.cat([part[:, : part.shape[1] - text] for part in first], dim=1)
    torch.testing.assert_close(tokens, alone[:, :26], rtol=0, atol=1e-5)
