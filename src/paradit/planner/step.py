"""Simulation of a denoising step, layer by layer: what each rank computes, and what travels meanwhile.

Each attention form, such as Ulysses or ring, names a function that simulates a layer with that form
(`attention.registry.Form.timed_by`). Which data travel is derived from the division of tokens and heads that
the real program uses (`distributed.shares`). `tests/unit/test_planner.py` compares the times with runs of
that program on random data (`tuning.rehearsal`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from paradit.attention.patterns import FULL, Pattern
from paradit.distributed.shares import Boxes, Shares, rows_between
from paradit.planner.costs import BlockSeconds
from paradit.planner.discrete_events import (
    Compute,
    Message,
    Post,
    Simulation,
    Step,
    Wait,
    interleaved,
    simulate,
)
from paradit.planner.hardware import Cluster

SIMULATED_LAYERS = 4
"""Number of layers of a denoising step that are simulated. Each further layer is taken to be as long as the
last simulated layer."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Ranks that share the attention of one guidance branch, or of several branches in one batch."""

    cluster: Cluster
    ranks: tuple[int, ...]
    """Ranks of the cluster that share the attention of the guidance branch. Helpers come last: decode ranks
    that take a share of the attention while they are idle, and hold no tokens."""
    shares: Shares
    costs: Sequence[BlockSeconds]
    """Costs of a transformer block, one entry for each rank that shares the guidance branch."""
    row_bytes: int
    """Bytes of one token in one head, for all videos in the batch."""
    batch: int
    pattern: Pattern = FULL
    """Pattern of the layer's self-attention."""
    sparse_patterns: tuple[Pattern, ...] = ()
    """Patterns of the model's sparse layers, in the order of the layers."""

    @property
    def tokens(self) -> Boxes:
        return [[self.shares.tokens_of(rank)] for rank in range(self.shares.num_ranks)]

    def inward(self, name: str, *targets: Boxes) -> Message:
        """Return the exchange that takes attention's inputs, such as q, k and v, to the ranks that need them.

        targets: for each input tensor, the regions (tokens x heads) of it that each rank needs.
        """
        text = [self.shares.replicated] if self.shares.num_replicated else []
        helpers = self.shares.num_helpers
        return self._moved(name, [rows_between(self.tokens, target, text, helpers) for target in targets])

    def results(self, work: Boxes) -> Message:
        """Return the exchange that carries attention results back to the ranks that hold the tokens.

        work: regions (tokens x heads) whose results each rank has computed.
        """
        held = [self.shares.held_by(rank) for rank in range(self.shares.num_ranks)]
        return self._moved("results", [rows_between(work, held)])

    def _moved(self, name: str, tables: Sequence[Sequence[Sequence[int]]]) -> Message:
        """Return the exchange in which ranks send each other attention rows (one token of one head each).

        tables: matrices of numbers of rows; row i, column j of each says how many the i-th rank sends to the
        j-th. The exchange carries the rows of all matrices together.
        """
        ranks = range(self.shares.num_ranks)
        sent = [[self.row_bytes * sum(table[i][j] for table in tables) for j in ranks] for i in ranks]
        return self.message(name, self.ranks, sent)

    def message(self, name: str, ranks: Sequence[int], sent: Sequence[Sequence[float]]) -> Message:
        """Return a simulated exchange in which the i-th of `ranks` sends `sent[i][j]` bytes to the j-th."""
        busy, latency = self.cluster.transfer(ranks, sent)
        posting = self.cluster.device.posting if busy else 0.0  # no bytes, no message
        return Message(name, tuple(ranks), busy, latency, sent, posting)

    def attention(self, rank: int, head_rows: float, beside: float = 0.0) -> Compute:
        """Return the simulated step in which a rank computes attention.

        rank: index of the rank among the ranks of this guidance branch. head_rows: number of (head, query)
        pairs that it computes, for one video of the batch. beside: seconds for which messages travel while
        the attention is computed, and slow it down.
        """
        return Compute("attention", self.costs[rank].attention(self.batch * head_rows, beside))


@dataclass(frozen=True, eq=False)
class Exchange:
    """Exchange of data among all ranks of a guidance branch.

    The ranks that hold tokens begin the exchange together. Helpers (decode ranks that take a share of the
    attention while idle) may still be computing then. Data between two ranks travel as soon as both are ready
    (`distributed.transport`, `point_to_point`), so the data of a helper form a separate message.
    """

    branch: Branch
    whole: Message

    @property
    def seconds(self) -> float:
        return self.whole.seconds

    @cached_property
    def _parts(self) -> list[Message]:
        """Parts of the exchange: one among the ranks that hold tokens, and one between these and each helper.

        A helper is a decode rank that takes a share of the attention while idle. Ranks that neither send nor
        receive bytes take no part.
        """
        shares, table = self.branch.shares, self.whole.table
        if not shares.num_helpers:
            return [self.whole]
        parts = []
        for last in range(shares.num_holders - 1, shares.num_ranks):
            # Bytes between holders if `last` is the last holder, else between the helper `last` and holders.
            def size(i: int, j: int, last: int = last) -> float:
                return table[i][j] if max(i, j, shares.num_holders - 1) == last else 0.0

            some = [i for i in range(last + 1) if any(size(i, j) or size(j, i) for j in range(last + 1))]
            sent = [[size(i, j) for j in some] for i in some]
            parts.append(self.branch.message(self.whole.name, [self.branch.ranks[i] for i in some], sent))
        return parts

    def _of(self, rank: int, key: Hashable) -> list[Post]:
        one = self.branch.ranks[rank]
        own = [Post((key, number), part) for number, part in enumerate(self._parts) if one in part.ranks]
        # An empty message: nothing to wait for, but the wait still gives another stream its turn.
        return own or [Post((key, "nothing", rank), self.branch.message(self.whole.name, [one], [[0.0]]))]

    def post(self, rank: int, key: Hashable) -> Iterator[Step]:
        """Yield the simulated steps in which a rank begins its part of the exchange.

        rank: index of the rank among the ranks of the guidance branch.
        """
        yield from self._of(rank, key)

    def wait(self, rank: int, key: Hashable) -> Iterator[Step]:
        """Yield the simulated steps in which a rank waits for all its data.

        rank: index of the rank among the ranks of the guidance branch.
        """
        for number, post in enumerate(self._of(rank, key)):
            yield Wait(post.key, same_turn=number > 0)  # the program that is simulated waits once for all


Layer = Callable[[int, Hashable], Iterator[Step]]
"""Type of a function that simulates one layer on one rank. It takes the rank's index among the ranks of its
guidance branch and a key unique to the layer, and yields what the rank does in that layer."""


@dataclass(frozen=True)
class Forward:
    """Simulated times of one denoising step in all transformer layers."""

    seconds: float
    computing: tuple[float, ...]
    """Seconds of computing during the step, one number per rank, in ascending order of the ranks."""

    @property
    def exposed(self) -> float:
        """Seconds for which the rank that computes longest waits for messages."""
        return self.seconds - max(self.computing)


def forward(
    branches: Sequence[tuple[Branch, Layer]], num_layers: int, streams: int = 1, lag: int = 0
) -> Forward:
    """Simulate a denoising step through all layers; all but the first few layers are extrapolated.

    branches: guidance branches, on disjoint ranks, each with the function that simulates its layers. streams:
    number of streams of work, such as guidance branches, that each rank computes in turns. lag: number of
    turns by which each stream starts after the previous one (`planner.discrete_events.interleaved`).
    """
    few = min(num_layers, SIMULATED_LAYERS)
    last = simulate_layers(branches, few, streams, lag)
    if few == num_layers:
        return Forward(last.seconds, tuple(last.computing))
    # One more layer takes as long as the last simulated one: what that added to a run without it.
    before = simulate_layers(branches, few - 1, streams, lag)
    more = num_layers - few
    computing = [b + more * (b - a) for a, b in zip(before.computing, last.computing, strict=True)]
    return Forward(last.seconds + more * (last.seconds - before.seconds), tuple(computing))


def simulate_layers(
    branches: Sequence[tuple[Branch, Layer]], num_layers: int, streams: int = 1, lag: int = 0
) -> Simulation:
    """Simulate every layer of a denoising step, for guidance branches on disjoint ranks.

    In the result, ranks are numbered from 0, in ascending order of the branches' ranks. streams: number of
    streams of work, such as guidance branches, that each rank computes in turns. lag: number of turns by
    which each stream starts after the previous one.
    """
    programs: dict[int, Iterator[Step]] = {}
    for number, (branch, layer) in enumerate(branches):
        for place, rank in enumerate(branch.ranks):
            assert rank not in programs, "a rank is in one branch"
            each = [_stream(layer, place, (number, stream), num_layers) for stream in range(streams)]
            programs[rank] = interleaved(each, lag)
    # Messages hold ranks of the cluster, while programs are numbered from 0. That does no harm: `simulate`
    # only counts how many ranks take part in a message.
    return simulate([programs[rank] for rank in sorted(programs)])


def _stream(layer: Layer, place: int, key: tuple[int, int], layers: int) -> Iterator[Step]:
    for number in range(layers):
        yield from layer(place, (*key, number))
