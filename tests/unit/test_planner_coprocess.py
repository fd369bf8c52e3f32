"""Co-processing: a simulated step equals the real program, rehearsed with a clock for every rank."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from paradit.attention.base import Site
from paradit.attention.join import join
from paradit.attention.patterns import FULL
from paradit.attention.registry import Choice
from paradit.attention.timing import layer
from paradit.config.placement import Placement
from paradit.distributed.mesh import Sharers
from paradit.distributed.shares import Shares
from paradit.distributed.timing import Link
from paradit.distributed.transport import Transfer, Transport
from paradit.parallel.coprocess import helping
from paradit.parallel.coprocess_message import HELP, Message
from paradit.parallel.run_blocks import run_interleaved, through_blocks
from paradit.planner.costs import BlockSeconds
from paradit.planner.step import Branch, forward, simulate_layers
from paradit.planner.whole_video import HELPERS_WORK
from paradit.planner.whole_video_step import branches_of, group_of
from paradit.tuning import rehearsal
from paradit.tuning.rehearsal import AttentionCost, BlockCost, rehearsed_tokens
from planner_cases import cluster, simulator
from rehearsed_attention import DEPTH, FINISH, HEADS, LAYERS, PROJECTION, ROW, TOKENS


class Stage:
    """Scheduler of ranks' programs in threads; only the rank whose clock is furthest behind runs."""

    def __init__(self, num_ranks: int) -> None:
        self.now = [0.0] * num_ranks
        self._ready: dict[int, float] = {}
        """Time at which each rank that can continue does so."""
        self._blocked: set[int] = set()
        self._running: int | None = None
        self._changed = threading.Condition()

    def run(self, programs: Sequence[Callable[[], object]]) -> None:
        errors: list[BaseException] = []

        def play(rank: int) -> None:
            try:
                with self._changed:
                    self._until_turn(rank)
                programs[rank]()
            except BaseException as error:
                errors.append(error)
            with self._changed:
                self._next()

        self._ready = dict.fromkeys(range(len(programs)), 0.0)
        threads = [threading.Thread(target=play, args=(rank,), daemon=True) for rank in self._ready]
        for thread in threads:
            thread.start()
        with self._changed:
            self._next()
        for thread in threads:
            thread.join(30)
        if errors:
            raise errors[0]
        assert not self._blocked, f"ranks {self._blocked} wait for ever"

    def take(self, rank: int, until: float) -> None:
        """Suspend a rank until that time on its clock."""
        with self._changed:
            self._ready[rank] = until
            self._next()
            self._until_turn(rank)
            self.now[rank] = until

    def block(self, rank: int) -> None:
        """Suspend a rank until `free` is called."""
        with self._changed:
            self._blocked.add(rank)
            self._next()
            self._until_turn(rank)

    def free(self, rank: int, until: float) -> None:
        if rank in self._blocked:
            self._blocked.remove(rank)
            self._ready[rank] = until

    def _next(self) -> None:
        self._running = min(self._ready, key=self._ready.__getitem__, default=None)
        if self._running is not None:
            self.now[self._running] = max(self.now[self._running], self._ready.pop(self._running))
        self._changed.notify_all()

    def _until_turn(self, rank: int) -> None:
        if not self._changed.wait_for(lambda: self._running == rank, timeout=30):
            raise TimeoutError(f"rank {rank} waits for ever")


@dataclass
class Part:
    """Part of a message that begins as one: between ranks that hold tokens, or between a helper and them."""

    posted: set[int] = field(default_factory=set)
    peers: set[int] = field(default_factory=set)
    sent: dict[tuple[int, int], int] = field(default_factory=dict)
    begins: float = 0.0
    arrives: float | None = None


class Ports:
    """Two ports for every rank, for sending and receiving, each of which handles one message at a time."""

    def __init__(self, stage: Stage, link: Link, num_holders: int) -> None:
        self.stage, self._link, self.num_holders = stage, link, num_holders
        self.parts: dict[tuple[int, int], Part] = {}
        self._free: dict[tuple[str, int], float] = {}

    def post(self, number: int, rank: int, sent: Sequence[int], received: Sequence[int]) -> list[Part]:
        """Post a rank's `number`-th message; its parts begin once the other side has posted them too."""
        found: dict[int, Part] = {}
        for other, (out, into) in enumerate(zip(sent, received, strict=True)):
            if other == rank or not (out or into):
                continue
            last = max(rank, other, self.num_holders - 1)
            part = found.setdefault(last, self.parts.setdefault((number, last), Part()))
            part.peers.add(other)
            if out:
                part.sent[rank, other] = out
        for part in found.values():
            part.posted.add(rank)
        for _, part in sorted(found.items()):
            if part.posted >= part.peers:
                self._begin(part, self.stage.now[rank])
        return [part for _, part in sorted(found.items())]

    def _begin(self, part: Part, now: float) -> None:
        busy: dict[tuple[str, int], int] = {}
        for (sender, receiver), size in part.sent.items():
            for port in (("out", sender), ("in", receiver)):
                busy[port] = busy.get(port, 0) + size
        last = now
        for port, size in busy.items():
            self._free[port] = max(now, self._free.get(port, 0.0)) + size * self._link.seconds_per_byte
            last = max(last, self._free[port])
        part.begins, part.arrives = now, last + self._link.latency
        for rank in part.posted:
            self.stage.free(rank, part.arrives)


class Rehearsed(Transport):
    """Simulated point-to-point transport between the ranks of a `Stage`."""

    def __init__(self, ports: Ports, rank: int, num_ranks: int) -> None:
        super().__init__(None)
        self.rank, self.num_ranks = rank, num_ranks
        self._ports, self._number = ports, 0

    def start(self, outgoing: list[Tensor], sizes: Sequence[int]) -> Transfer:
        like = outgoing[self.rank]
        sent = [tensor.nbytes for tensor in outgoing]
        parts = self._ports.post(self._number, self.rank, sent, [size * like.itemsize for size in sizes])
        self._number += 1
        return Arriving(self._ports.stage, self.rank, parts, [like.new_empty(size) for size in sizes])


class Arriving(Transfer):
    def __init__(self, stage: Stage, rank: int, parts: list[Part], incoming: list[Tensor]) -> None:
        super().__init__([], incoming, [])
        self._stage, self._rank, self._parts = stage, rank, parts

    def wait(self) -> list[Tensor]:
        for part in self._parts:
            while part.arrives is None:
                self._stage.block(self._rank)
            if part.arrives > self._stage.now[self._rank]:
                self._stage.take(self._rank, part.arrives)
        return super().wait()


class RankClock:
    def __init__(self, stage: Stage, rank: int) -> None:
        self._stage, self._rank = stage, rank

    @property
    def now(self) -> float:
        return self._stage.now[self._rank]

    @now.setter
    def now(self, then: float) -> None:
        self._stage.take(self._rank, then)


def rehearsed(step: Message, num_holders: int, link: Link) -> tuple[list[float], list[Part], list[float]]:
    """Rehearse a step with help on all ranks, holders and helpers.

    Returns when each rank ends, the messages, and for how long each rank has computed.
    """
    shares = step.shares(num_holders)
    stage = Stage(shares.num_ranks)
    ports = Ports(stage, link, num_holders)
    computed = [0.0] * shares.num_ranks

    def program(rank: int) -> Callable[[], object]:
        clock: Any = RankClock(stage, rank)

        def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
            assert key.shape[1] == shares.num_rows
            taken = ROW * query.shape[0] * query.shape[1] * query.shape[2]
            computed[rank] += taken
            clock.now += taken
            return query

        transport = Rehearsed(ports, rank, shares.num_ranks)
        choice = FORMS[step.choice]
        attend: Any = join(Sharers(transport), choice, kernel)(shares)
        if rank >= num_holders:
            sites = [Site(layer) for layer in range(LAYERS)]
            works: Any = helping(step, sites, attend, torch.device("meta"))
        else:
            held = shares.tokens[rank] + shares.num_replicated
            value = torch.empty(step.batch, held, HEADS, DEPTH, device="meta")
            part = 1 / step.streams
            cost = BlockCost((AttentionCost(value, (PROJECTION * part,) * 3),), FINISH * part)
            blocks = [rehearsal._RehearsedBlock(cost, clock)] * LAYERS
            tokens = rehearsed_tokens(value)
            works = [through_blocks(blocks, tokens, attend) for _ in range(step.streams)]
        return lambda: run_interleaved(works, step.lag)

    stage.run([program(rank) for rank in range(shares.num_ranks)])
    return stage.now, list(ports.parts.values()), computed


def helped_step(holders: int, work: Sequence[int], form: Choice, text: int = 0) -> tuple[Message, Shares]:
    streams = 2 if form.interleave else 1
    step = Message(
        kind=HELP,
        batch=2 // streams,
        num_tokens=TOKENS,
        num_replicated=text,
        num_heads=HEADS,
        head_dim=DEPTH,
        choice=FORMS.index(form),
        streams=streams,
        lag=form.lag,
        work=tuple(work),
    )
    return step, step.shares(holders)


def branch(step: Message, shares: Shares, link: Link) -> Branch:
    part = 1 / step.streams
    holder = BlockSeconds(value=part * PROJECTION, finish=part * FINISH, head_row=ROW, wave=0.0, merge=0.0)
    helper = BlockSeconds(value=0.0, finish=0.0, head_row=ROW, wave=0.0, merge=0.0)
    return Branch(
        cluster=cluster(shares.num_ranks, link.latency, 1 / link.seconds_per_byte),
        ranks=tuple(range(shares.num_ranks)),
        shares=shares,
        costs=[holder] * shares.num_holders + [helper] * shares.num_helpers,
        row_bytes=step.batch * DEPTH * 4,
        batch=step.batch,
    )


FORMS = [
    Choice.of("ulysses"),
    Choice.of("ulysses", interleave=True),
    Choice.of("pipesp", chunks=2),
    Choice.of("pipesp", chunks=3, interleave=True),
]
LINKS = [(0.0, 2.0**-20), (0.25, 2.0**-12), (0.5, 2.0**-10), (0.01, 0.0007)]
ROWS = TOKENS * HEADS


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(
    ("holders", "work", "text"),
    [
        (1, [ROWS // 2], 0),
        (1, [ROWS // 10], 8),
        (1, [ROWS // 16, ROWS // 3], 0),
        (2, [ROWS // 4], 0),
        (2, [ROWS // 4, 0, ROWS // 8], 4),
        (3, [ROWS // 5 - 7, ROWS // 3], 12),
        (2, [4, 4], 0),  # a helper has no work in some chunks
    ],
)
def test_a_step_with_help_is_the_program_rehearsed(
    holders: int, work: list[int], text: int, link: tuple[float, float], form: Choice
) -> None:
    step, shares = helped_step(holders, work, form, text)
    ends, parts, computed = rehearsed(step, holders, Link(*link))
    one = branch(step, shares, Link(*link))
    simulation = simulate_layers([(one, layer(one, form))], LAYERS, step.streams, step.lag)
    assert list(simulation.ends) == pytest.approx(ends, rel=1e-12)
    own = LAYERS * (3 * PROJECTION + FINISH)
    assert list(simulation.computing) == pytest.approx(
        [seconds + own * (rank < holders) for rank, seconds in enumerate(computed)]
    )
    # Every message agrees too: ranks, bytes and times.
    simulated = [(sent.begin, sent.end, _pairs(sent.message)) for sent in simulation.sent]
    simulated = [sent for sent in simulated if sent[2]]
    expected = [(part.begins, part.arrives, part.sent) for part in parts]

    def in_order(messages: list[Any]) -> list[Any]:
        return sorted(messages, key=lambda sent: (round(sent[0], 6), sorted(sent[2].items())))

    assert len(simulated) == len(expected)
    for ours, theirs in zip(in_order(simulated), in_order(expected), strict=True):
        assert ours[2] == theirs[2]
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-12)


def _pairs(message: Any) -> dict[tuple[int, int], float]:
    """Return the number of bytes from each rank to each other."""
    return {
        (sender, receiver): size
        for sender, row in zip(message.ranks, message.table, strict=True)
        for receiver, size in zip(message.ranks, row, strict=True)
        if size
    }


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_folded_layers_are_played_layers(form: Choice) -> None:
    step, shares = helped_step(2, [ROWS // 4, ROWS // 8], form, text=4)
    one = branch(step, shares, Link(0.01, 0.0007))
    program = layer(one, form)
    folded = forward([(one, program)], 20, step.streams, step.lag)
    whole = simulate_layers([(one, program)], 20, step.streams, step.lag)
    assert folded.seconds == pytest.approx(whole.seconds, rel=1e-3)


@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize("model", ["Wan2.1-T2V-1.3B-Diffusers", "HunyuanVideo"])
@pytest.mark.parametrize("denoise", [(0,), (0, 1)])
def test_a_placement_is_simulated_as_its_ranks_agree(
    denoise: tuple[int, ...], model: str, interleave: bool
) -> None:
    one, form = simulator(cluster(4), model), Choice.of("ulysses", interleave=interleave)
    placement = Placement(ranks=len(denoise) + 2, denoise=denoise, decode=(len(denoise), len(denoise) + 1))
    spec = one.spec.transformers[0]
    for share in HELPERS_WORK:
        ((found, _),), streams = branches_of(one, group_of(placement, share), form, FULL)
        text = one.spec.text_length if model == "HunyuanVideo" else 0
        rows = spec.num_attention_heads * (one.tokens + text)
        step = Message(
            num_tokens=one.tokens,
            num_replicated=text,
            num_heads=spec.num_attention_heads,
            work=(int(share * rows / (len(denoise) + 2)),) * 2,
        )
        assert found.shares == step.shares(len(denoise))
        assert found.ranks == tuple(range(len(denoise) + 2))
        # Branches as in `SequenceParallel`: in one batch, or each in a stream of its own.
        assert (found.batch, streams) == ((1, one.branches) if interleave else (one.branches, 1))
