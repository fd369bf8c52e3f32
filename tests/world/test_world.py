"""Worlds of several gloo processes: the test harness, and the exchange over the real transport."""

import os
import signal
import time

import pytest
import torch
from torch import Tensor

from attention_in_memory import FORMS, SHARES, layout_of, of_rank, random_qkv
from paradit.attention.base import Site
from paradit.attention.local_attention import sdpa
from paradit.distributed.exchange import UlyssesExchange
from paradit.distributed.shares import Shares
from paradit.distributed.world import World
from paradit.parallel.run_blocks import run
from paradit.testing import WorldError, run_world


def tell(world: World, word: str) -> tuple[int, int, str]:
    return world.rank, world.size, word


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_results_come_by_rank(num_ranks: int) -> None:
    assert run_world(tell, num_ranks, "a") == [(rank, num_ranks, "a") for rank in range(num_ranks)]


def fail_on(world: World, rank: int) -> None:
    if world.rank == rank:
        raise ZeroDivisionError(f"on purpose, on rank {rank}")
    world.transport().start([torch.zeros(1)] * world.size, [1] * world.size).wait()


@pytest.mark.parametrize("rank", [0, 2])
def test_a_failure_is_the_failing_rank_s(rank: int) -> None:
    said = rf"(?s)rank {rank} of 3: Traceback.*on purpose, on rank {rank}"
    with pytest.raises(WorldError, match=said) as raised:
        run_world(fail_on, 3, rank)
    assert "did not end" not in str(raised.value)  # nobody waited for the time limit


def die(world: World) -> None:
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.transport().start([torch.zeros(1)] * world.size, [1] * world.size).wait()


def test_a_killed_rank_is_named() -> None:
    with pytest.raises(WorldError, match="rank 1 of 2: ended by SIGKILL"):
        run_world(die, 2)


def hang(world: World) -> None:
    if world.rank == 0:
        time.sleep(1000)


def test_a_hang_ends_and_shows_where_it_was() -> None:
    with pytest.raises(WorldError, match=r"(?s)rank 0 of 2: did not end within 3 s.*in hang"):
        run_world(hang, 2, timeout=3.0)


def attend(world: World, shares: Shares, forms: list[str]) -> list[Tensor]:
    """Return the attended values of this rank's tokens, for each form."""
    q, k, v = of_rank(shares, world.rank, *random_qkv(shares))
    layout = layout_of(shares, world.rank)
    attended = []
    for form in forms:
        transport = world.transport()
        result = run(FORMS[form](shares, transport)(Site(0), iter((v, k, q)), layout))
        attended.append(result[:, : shares.tokens[world.rank]])
        said = UlyssesExchange(shares, transport, 5 if form == "5 chunks" else 1)
        assert transport.bytes_sent == said.bytes_sent(world.rank, 2, q.shape[3], q.itemsize)
    return attended


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_ulysses_over_gloo_equals_attention_in_one_place(shares: Shares) -> None:
    expected = sdpa(*random_qkv(shares))[:, : shares.num_tokens]
    for by_form in zip(*run_world(attend, shares.num_ranks, shares, ["plain", "5 chunks"]), strict=True):
        torch.testing.assert_close(torch.cat(by_form, dim=1), expected, rtol=0, atol=1e-6)
