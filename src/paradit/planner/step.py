"""A denoising step, played layer by layer: what each rank computes, and what travels meanwhile.

The orders are those of `attention.ulysses`, `attention.ring` and `attention.window`, whose shares and boxes
are asked for what travels (`distributed.shares`); `tests/test_planner.py` holds the times against a rehearsal
of the program itself (`tuning.rehearsal`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from paradit.distributed.shares import Boxes, ChunkBoxes, Shares, chunk_boxes, rows_between
from paradit.placement import Form
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

    def _of(self, rank: int, key: Any) -> list[Post]:
        one = self.branch.ranks[rank]
        own = [Post((key, number), part) for number, part in enumerate(self._parts) if one in part.ranks]
        # Nothing to wait for, but a turn for another stream.
        return own or [Post((key, "nothing", rank), self.branch.message(self.whole.name, [one], [[0.0]]))]

    def post(self, rank: int, key: Any) -> Iterator[Step]:
        """What the `rank`-th of the branch begins."""
        yield from self._of(rank, key)

    def wait(self, rank: int, key: Any) -> Iterator[Step]:
        """Until all that it sends and gets has arrived."""
        for number, post in enumerate(self._of(rank, key)):
            yield Wait(post.key, same_turn=number > 0)


Layer = Callable[[int, Any], Iterator[Step]]
"""(rank's place in the branch, key of the layer) -> what the rank does in a layer."""


def ulysses(branch: Branch, num_chunks: int = 1, *, interleaved: bool = False) -> Layer:
    """As `attention.ulysses.ulysses`: Ulysses in one chunk, else PipeSP in both directions.

    interleaved: another stream's messages travel at any time.
    """
    chunks = chunk_boxes(branch.shares, num_chunks)
    heads = [[[box] for box in chunk.new_heads] for chunk in chunks]
    value = Exchange(branch, branch.inward("values", heads[0]))
    # A chunk's keys and queries, or with its values, are one message.
    together = [
        Exchange(
            branch,
            branch.inward("keys and queries", *[heads[index]] * (1 if index == 0 else 2), chunk.work),
        )
        for index, chunk in enumerate(chunks)
    ]
    results = [Exchange(branch, branch.results(chunk.work)) for chunk in chunks]
    # The next chunk's way in and the last one's way out; and the other stream's layer.
    beside = [
        sum(
            message.seconds
            for message in (*together[index + 1 : index + 2], *results[max(0, index - 1) : index])
        )
        for index in range(num_chunks)
    ]
    if interleaved:
        whole = sum(message.seconds for message in (value, *together, *results))
        beside = [whole / num_chunks] * num_chunks

    def layer(rank: int, key: Any) -> Iterator[Step]:
        cost = branch.costs[rank]
        yield Compute("project", cost.value)
        yield from value.post(rank, (key, "v"))
        yield Compute("project", 2 * cost.value)
        for index, message in enumerate(together):
            yield from message.post(rank, (key, "in", index))
        yield from value.wait(rank, (key, "v"))
        for index, chunk in enumerate(chunks):
            yield from together[index].wait(rank, (key, "in", index))
            yield branch.attention(rank, sum(map(len, chunk.work[rank])), beside[index])
            yield from results[index].post(rank, (key, "out", index))
        for index, result in enumerate(results):
            yield from result.wait(rank, (key, "out", index))
        yield Compute("finish", cost.finish)

    return layer


def pipesp_paper(branch: Branch) -> Layer:
    """As `attention.ulysses.pipesp_paper`: all comes in first, then head by head is computed and sent."""
    return _in_first(branch, -(-max(branch.shares.work) // branch.shares.num_rows))


def windowed(branch: Branch) -> Layer:
    """As `attention.window.windowed_over`: all comes in, by whole heads; then all is computed, and sent."""
    return _in_first(branch, 1, whole_heads=True)


def window_moves(branch: Branch) -> list[Message]:
    """What travels in a layer of `windowed`."""
    (chunk,) = chunk_boxes(branch.shares, 1, whole_heads=True)
    return [*_incoming(branch, chunk), branch.results(chunk.work)]


def _incoming(branch: Branch, whole: ChunkBoxes) -> list[Message]:
    """Values, keys and queries, each by itself."""
    heads = [[box] for box in whole.new_heads]
    return [
        branch.inward("values", heads),
        branch.inward("keys", heads),
        branch.inward("queries", whole.work),
    ]


def _in_first(branch: Branch, count: int, *, whole_heads: bool = False) -> Layer:
    """All comes in before anything is computed; results leave in `count` chunks."""
    (whole,) = chunk_boxes(branch.shares, 1, whole_heads=whole_heads)
    incoming = _incoming(branch, whole)
    chunks = chunk_boxes(branch.shares, count)
    results = [branch.results(chunk.work) for chunk in chunks]

    def layer(rank: int, key: Any) -> Iterator[Step]:
        for index, message in enumerate(incoming):
            yield Compute("project", branch.costs[rank].value)
            yield Post((key, "in", index), message)
        for index in range(3):
            yield Wait((key, "in", index))
        for index, chunk in enumerate(chunks):
            beside = results[index - 1].seconds if index else 0.0
            yield branch.attention(rank, sum(map(len, chunk.work[rank])), beside)
            yield Post((key, "out", index), results[index])
        for index in range(count):
            yield Wait((key, "out", index))
        yield Compute("finish", branch.costs[rank].finish)

    return layer


@dataclass(frozen=True, eq=False)
class Ring:
    """As `attention.ring`: keys and values go round among `degree` groups; Ulysses in each."""

    branch: Branch
    degree: int
    ring_inside: bool = False

    @cached_property
    def _size(self) -> int:
        """Ranks of a group."""
        return self.branch.shares.num_ranks // self.degree

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Ranks of the branch, by group."""
        size, degree = self._size, self.degree
        return [
            [
                rank
                for rank in range(self.branch.shares.num_ranks)
                if (rank % degree if self.ring_inside else rank // size) == group
            ]
            for group in range(degree)
        ]

    @cached_property
    def _lengths(self) -> list[int]:
        """Tokens of each group."""
        return [sum(self.branch.shares.tokens[rank] for rank in group) for group in self._groups]

    @cached_property
    def _heads(self) -> float:
        """Of a rank."""
        return self.branch.shares.num_heads / self._size

    @cached_property
    def _inside(self) -> list[tuple[Message, Message, Message]]:
        """Of each group: values, keys with queries, and results."""
        return [
            self._exchange(group, length) for group, length in zip(self._groups, self._lengths, strict=True)
        ]

    def _exchange(self, group: Sequence[int], length: int) -> tuple[Message, Message, Message]:
        branch, shares = self.branch, self.branch.shares
        within = Shares(
            num_heads=shares.num_heads,
            tokens=tuple(shares.tokens[rank] for rank in group),
            work=Shares.equal(length + shares.num_replicated, shares.num_heads, self._size).work,
            num_replicated=shares.num_replicated,
        )
        part = replace(
            branch,
            ranks=tuple(branch.ranks[rank] for rank in group),
            shares=within,
            costs=[branch.costs[rank] for rank in group],
        )
        (whole,) = chunk_boxes(within, 1, whole_heads=True)
        heads = [[box] for box in whole.new_heads]
        together = part.inward("keys and queries", heads, whole.work)
        return part.inward("values", heads), together, part.results(whole.work)

    @cached_property
    def _turns(self) -> list[list[Message]]:
        """Of the ranks with the same heads, turn by turn: each group's keys and values one group on."""
        return [[self._turn(index, turn) for turn in range(self.degree - 1)] for index in range(self._size)]

    def _turn(self, index: int, turn: int) -> Message:
        degree = self.degree
        sent = [[0.0] * degree for _ in range(degree)]
        for group in range(degree):
            owner = (group - turn) % degree
            sent[group][(group + 1) % degree] = 2 * self.branch.row_bytes * self._lengths[owner] * self._heads
        ranks = [self.branch.ranks[group[index]] for group in self._groups]
        return self.branch.message("keys and values", ranks, sent)

    def layer(self, rank: int, key: Any) -> Iterator[Step]:
        cost = self.branch.costs[rank]
        group = next(number for number, ranks in enumerate(self._groups) if rank in ranks)
        values, together, results = self._inside[group]
        yield Compute("project", cost.value)
        if self._size > 1:
            yield Post((key, "v", group), values)
            yield Compute("project", 2 * cost.value)
            yield Post((key, "kq", group), together)
            yield Wait((key, "v", group))
            yield Wait((key, "kq", group))
        else:
            yield Compute("project", cost.value)
        yield from self._rotate(rank, group, key)
        if self._size > 1:
            yield Post((key, "out", group), results)
            yield Wait((key, "out", group))
        yield Compute("finish", cost.finish)

    def _rotate(self, rank: int, group: int, key: Any) -> Iterator[Step]:
        """Attention over one group's keys after the other, while the next ones are on their way."""
        branch, shares, cost = self.branch, self.branch.shares, self.branch.costs[rank]
        index = self._groups[group].index(rank)
        rows = (self._lengths[group] + shares.num_replicated) * self._heads
        for turn in range(self.degree):
            coming = self._turns[index][turn] if turn + 1 < self.degree else None
            if coming is not None:
                yield Post((key, "turn", index, turn), coming)
            if turn == 0 and self._size == 1:
                yield Compute("project", cost.value)
            owner = (group - turn) % self.degree
            part = (self._lengths[owner] + (shares.num_replicated if turn == 0 else 0)) / shares.num_rows
            yield branch.attention(rank, rows * part, coming.seconds if coming is not None else 0.0)
            if turn:  # the first part is what the others are merged with
                yield Compute("merge", cost.merge * rows * branch.batch)
            if coming is not None:
                yield Wait((key, "turn", index, turn))


def layer_of(branch: Branch, form: Form, ring_degree: int = 1, *, ring_inside: bool = False) -> Layer:
    """A form of attention on the ranks of a branch."""
    if form.attention in ("ring", "usp") and ring_degree > 1:
        return Ring(branch, ring_degree, ring_inside).layer
    if form.attention == "pipesp-paper":
        return pipesp_paper(branch)
    return ulysses(branch, form.chunks, interleaved=form.interleave)


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
