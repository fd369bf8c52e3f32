"""A denoising step, played layer by layer: what each rank computes, and what travels meanwhile.

What a rank does in a layer stands beside the attention that it mirrors (`attention.registry.Form.layer`), and
asks the same shares and boxes for what travels (`distributed.shares`); `tests/test_planner.py` holds the
times against a rehearsal of the program itself (`tuning.rehearsal`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from paradit.distributed.shares import Boxes, Shares, rows_between
from paradit.planner.costs import BlockSeconds
from paradit.planner.events import Compute, Message, Played, Post, Step, Wait, interleaved, play
from paradit.planner.hardware import Cluster

PLAYED_LAYERS = 4
"""After so many the others take as long as the last of them: layers are alike."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Ranks that share the attention of a branch, or of several in one batch."""

    cluster: Cluster
    ranks: tuple[int, ...]
    """Of the cluster; helpers, which hold no tokens, are the last ones."""
    shares: Shares
    costs: Sequence[BlockSeconds]
    """Of each of the ranks."""
    row_bytes: int
    """Of a (token, head) row, of all videos in the batch."""
    batch: int

    @property
    def tokens(self) -> Boxes:
        return [[self.shares.tokens_of(rank)] for rank in range(self.shares.num_ranks)]

    def inward(self, name: str, *targets: Boxes) -> Message:
        """A message of all ranks, of their tokens: a tensor to each of the targets."""
        text = [self.shares.replicated] if self.shares.num_replicated else []
        helpers = self.shares.num_helpers
        return self._moved(name, [rows_between(self.tokens, target, text, helpers) for target in targets])

    def results(self, work: Boxes) -> Message:
        """Attended values on their way back."""
        held = [self.shares.held_by(rank) for rank in range(self.shares.num_ranks)]
        return self._moved("results", [rows_between(work, held)])

    def _moved(self, name: str, tables: Sequence[Sequence[Sequence[int]]]) -> Message:
        """As many rows as the tables say together."""
        ranks = range(self.shares.num_ranks)
        sent = [[self.row_bytes * sum(table[i][j] for table in tables) for j in ranks] for i in ranks]
        return self.message(name, self.ranks, sent)

    def message(self, name: str, ranks: Sequence[int], sent: Sequence[Sequence[float]]) -> Message:
        """Bytes from the i-th of `ranks` to the j-th."""
        busy, latency = self.cluster.transfer(ranks, sent)
        posting = self.cluster.device.posting if busy else 0.0
        return Message(name, tuple(ranks), busy, latency, sent, posting)

    def attention(self, rank: int, head_rows: float, beside: float = 0.0) -> Compute:
        """The `rank`-th of the ranks computes so many pieces of each video, beside so long messages."""
        return Compute("attention", self.costs[rank].attention(self.batch * head_rows, beside))


@dataclass(frozen=True, eq=False)
class Exchange:
    """A message of all ranks of a branch, which those that hold tokens begin together.

    Helpers compute other things meanwhile, and between two ranks messages travel when both are ready
    (`distributed.transport`, `point_to_point`). So what a helper sends and gets is a message by itself.
    """

    branch: Branch
    whole: Message

    @property
    def seconds(self) -> float:
        return self.whole.seconds

    @cached_property
    def _parts(self) -> list[Message]:
        """Of those that hold tokens, and of these with each helper; ranks without bytes take no part."""
        shares, table = self.branch.shares, self.whole.table
        if not shares.num_helpers:
            return [self.whole]
        parts = []
        for last in range(shares.num_holders - 1, shares.num_ranks):

            def size(i: int, j: int, last: int = last) -> float:
                return table[i][j] if max(i, j, shares.num_holders - 1) == last else 0.0

            some = [i for i in range(last + 1) if any(size(i, j) or size(j, i) for j in range(last + 1))]
            sent = [[size(i, j) for j in some] for i in some]
            parts.append(self.branch.message(self.whole.name, [self.branch.ranks[i] for i in some], sent))
        return parts

    def _of(self, rank: int, key: Hashable) -> list[Post]:
        one = self.branch.ranks[rank]
        own = [Post((key, number), part) for number, part in enumerate(self._parts) if one in part.ranks]
        # Nothing to wait for, but a turn for another stream.
        return own or [Post((key, "nothing", rank), self.branch.message(self.whole.name, [one], [[0.0]]))]

    def post(self, rank: int, key: Hashable) -> Iterator[Step]:
        """What the `rank`-th of the branch begins."""
        yield from self._of(rank, key)

    def wait(self, rank: int, key: Hashable) -> Iterator[Step]:
        """Until all that it sends and gets has arrived."""
        for number, post in enumerate(self._of(rank, key)):
            yield Wait(post.key, same_turn=number > 0)


Layer = Callable[[int, Hashable], Iterator[Step]]
"""(rank's place in the branch, key of the layer) -> what the rank does in a layer."""


@dataclass(frozen=True)
class Forward:
    """All layers of a step."""

    seconds: float
    computing: tuple[float, ...]
    """Seconds that each rank of the cluster's computes."""

    @property
    def exposed(self) -> float:
        """Seconds in which the rank that computes longest waits for messages."""
        return self.seconds - max(self.computing)


def forward(
    branches: Sequence[tuple[Branch, Layer]], num_layers: int, streams: int = 1, lag: int = 0
) -> Forward:
    """Branches on ranks of their own, each in so many streams side by side, through all layers."""
    few = min(num_layers, PLAYED_LAYERS)
    last = play_layers(branches, few, streams, lag)
    if few == num_layers:
        return Forward(last.seconds, tuple(last.computing))
    before = play_layers(branches, few - 1, streams, lag)
    more = num_layers - few
    computing = [b + more * (b - a) for a, b in zip(before.computing, last.computing, strict=True)]
    return Forward(last.seconds + more * (last.seconds - before.seconds), tuple(computing))


def play_layers(
    branches: Sequence[tuple[Branch, Layer]], num_layers: int, streams: int = 1, lag: int = 0
) -> Played:
    """The same, every layer played. Ranks are counted among those of the branches, in ascending order."""
    programs: dict[int, Iterator[Step]] = {}
    for number, (branch, layer) in enumerate(branches):
        for place, rank in enumerate(branch.ranks):
            assert rank not in programs, "a rank is in one branch"
            each = [_stream(layer, place, (number, stream), num_layers) for stream in range(streams)]
            programs[rank] = interleaved(each, lag)
    # Messages name ranks of the cluster, programs are counted; only how many take part matters.
    return play([programs[rank] for rank in sorted(programs)])


def _stream(layer: Layer, place: int, key: tuple[int, int], layers: int) -> Iterator[Step]:
    for number in range(layers):
        yield from layer(place, (*key, number))
