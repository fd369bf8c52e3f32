"""Who holds which tokens, and who computes which part of the attention. Torch-free.

Attention over S rows and H heads is H x S pieces of work of the same size: one query row of one head
against all keys. Counted head by head, any contiguous range of them can be one rank's share; so the work is
divided to within one row of equal whatever S, H and the number of ranks are, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

ROW_MULTIPLE = 4
"""Equal token shares, and chunks of work that cut a head, end at multiples of this many rows.

Fewer rows of a head than a few go through other instructions of a CPU: see `attention.local.some_rows`, for
all shares of work.
"""


@dataclass(frozen=True)
class Box:
    """Tokens start to stop of heads first_head to last_head (which is not included): a part of [S, H]."""

    first_head: int
    last_head: int
    start: int
    stop: int

    def __len__(self) -> int:
        return (self.last_head - self.first_head) * (self.stop - self.start)

    def intersect(self, other: Box) -> Box | None:
        """What both have, if anything."""
        box = Box(
            max(self.first_head, other.first_head),
            min(self.last_head, other.last_head),
            max(self.start, other.start),
            min(self.stop, other.stop),
        )
        return box if box.first_head < box.last_head and box.start < box.stop else None


@dataclass(frozen=True)
class Shares:
    """The tokens that each rank holds, and the work that each computes, both in the order of the ranks."""

    num_heads: int
    tokens: tuple[int, ...]
    """How many of the tokens each rank holds; zero is allowed."""
    work: tuple[int, ...]
    """How many of the (head, query row) pieces each rank computes; zero is allowed."""
    num_replicated: int = 0
    """Rows that every rank but the helpers holds, after all tokens: a joint-attention model's text."""
    num_helpers: int = 0
    """So many ranks, the last ones, hold nothing at all: they only work."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.work):
            raise ValueError(f"{len(self.tokens)} ranks hold tokens, {len(self.work)} have work")
        if min(self.tokens) < 0 or min(self.work) < 0:
            raise ValueError(f"a share is negative: tokens {self.tokens}, work {self.work}")
        if sum(self.work) != self.num_heads * self.num_rows:
            raise ValueError(
                f"the work shares {self.work} make {sum(self.work)}, and {self.num_heads} heads of "
                f"{self.num_rows} rows are {self.num_heads * self.num_rows}"
            )
        if self.num_helpers and any(self.tokens[self.num_holders :]):
            raise ValueError(
                f"the last {self.num_helpers} ranks hold nothing, and {self.tokens} are the tokens"
            )
        if not 0 <= self.num_helpers < self.num_ranks:
            raise ValueError(
                f"{self.num_helpers} of {self.num_ranks} ranks hold nothing: one must hold something"
            )

    @classmethod
    def equal(cls, num_tokens: int, num_heads: int, num_ranks: int, num_replicated: int = 0) -> Shares:
        """Plain Ulysses: equal tokens, and equal work, over all ranks."""
        num_rows = num_tokens + num_replicated
        return cls(
            num_heads=num_heads,
            tokens=_equal_parts(0, num_tokens, num_ranks, num_tokens),
            work=_equal_parts(0, num_heads * num_rows, num_ranks, num_rows, multiple=1),
            num_replicated=num_replicated,
        )

    def with_helpers(self, work: Sequence[int]) -> Shares:
        """The same tokens; further ranks, which hold none, do so much work, and the others share the rest."""
        left = sum(self.work) - sum(work)
        return replace(
            self,
            tokens=(*self.tokens, *(0 for _ in work)),
            work=(*_equal_parts(0, left, self.num_ranks, self.num_rows, multiple=1), *work),
            num_helpers=len(work),
        )

    @property
    def num_ranks(self) -> int:
        return len(self.tokens)

    @property
    def num_holders(self) -> int:
        """Ranks that are no helpers: the first ones."""
        return self.num_ranks - self.num_helpers

    @property
    def num_tokens(self) -> int:
        """Without the replicated ones."""
        return sum(self.tokens)

    @property
    def most_heads(self) -> int:
        """The most heads that a rank works on, begun ones counted whole."""
        return -(-max(self.work) // self.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows that a head's attention has."""
        return self.num_tokens + self.num_replicated

    def tokens_of(self, rank: int) -> Box:
        """What a rank holds: all heads of its tokens, which may be none."""
        held = _range_of(self.tokens, rank)
        return Box(0, self.num_heads, held.start, held.stop)

    @property
    def replicated(self) -> Box:
        """What every rank but the helpers holds besides."""
        return Box(0, self.num_heads, self.num_tokens, self.num_rows)

    def held_by(self, rank: int) -> list[Box]:
        """All that a rank holds, in that order; a helper's is one empty box."""
        is_holder = self.num_replicated and rank < self.num_holders
        return [self.tokens_of(rank), *([self.replicated] if is_holder else [])]

    def work_of(self, rank: int) -> list[Box]:
        """The query rows that a rank computes: the end of a head, whole heads, the beginning of one."""
        return list(_blocks(_range_of(self.work, rank), self.num_rows))

    def chunks_of(self, rank: int, count: int) -> list[list[Box]]:
        """The same in `count` parts, some of which may be empty: of whole heads if there are enough."""
        work = _range_of(self.work, rank)
        multiple = self.num_rows if len(work) >= count * self.num_rows else ROW_MULTIPLE
        sizes = _equal_parts(work.start, work.stop, count, self.num_rows, multiple)
        ends = [work.start, *(work.start + end for end in accumulate(sizes))]
        return [list(_blocks(range(*both), self.num_rows)) for both in pairwise(ends)]

    def heads_for(self, work: Sequence[Box]) -> Box:
        """The keys, or values, that some rows need: all rows of their heads."""
        first, last = (work[0].first_head, work[-1].last_head) if work else (0, 0)
        return Box(first, last, 0, self.num_rows)

    def heads_of(self, rank: int) -> Box:
        """The heads that a rank's equal part of them touches, whatever the number of rows."""
        first = self.num_heads * rank // self.num_ranks
        last = -(-self.num_heads * (rank + 1) // self.num_ranks)
        return Box(first, last, 0, self.num_rows)


Boxes = Sequence[Sequence[Box]]
"""The boxes of each rank, in the order of the ranks; those of one rank do not overlap."""


def common_parts(source: Sequence[Box], target: Sequence[Box]) -> list[tuple[int, int, Box]]:
    """(index of the source box, of the target box, what both have), in an order that both sides share."""
    pairs = ((i, j, a.intersect(b)) for i, a in enumerate(source) for j, b in enumerate(target))
    return [(i, j, box) for i, j, box in pairs if box is not None]


def boxes_given(
    source: Boxes, sender: int, receiver: int, replicated: Sequence[Box] = (), num_helpers: int = 0
) -> Sequence[Box]:
    """The boxes of which a rank sends another one what that needs.

    `replicated` are boxes that every rank but the last ones, the helpers, holds besides its source boxes.
    They travel to helpers only: to the first from the first rank, to the second from the second, and so on.
    """
    holders = len(source) - num_helpers
    helper = receiver - holders
    return [*source[sender], *replicated] if helper >= 0 and sender == helper % holders else source[sender]


def rows_between(
    source: Boxes, target: Boxes, replicated: Sequence[Box] = (), num_helpers: int = 0
) -> list[list[int]]:
    """How many (token, head) rows each rank sends to each other one; none to itself."""

    def rows(sender: int, receiver: int) -> int:
        boxes = boxes_given(source, sender, receiver, replicated, num_helpers)
        return sum(_common_rows(a, b) for a in boxes for b in target[receiver])

    ranks = range(len(source))
    return [[0 if one == other else rows(one, other) for other in ranks] for one in ranks]


def _common_rows(a: Box, b: Box) -> int:
    """How many rows both have; for large worlds without making a box of them."""
    heads = min(a.last_head, b.last_head) - max(a.first_head, b.first_head)
    rows = min(a.stop, b.stop) - max(a.start, b.start)
    return heads * rows if heads > 0 and rows > 0 else 0


@dataclass(frozen=True)
class ChunkBoxes:
    """What a chunk of the work is made of, for each rank."""

    work: Boxes
    """Query rows that the rank computes."""
    new_heads: Sequence[Box]
    """Heads whose keys and values come with this chunk; a head that an earlier chunk began is there."""


def chunk_boxes(shares: Shares, num_chunks: int, *, whole_heads: bool = False) -> list[ChunkBoxes]:
    """The work in chunks.

    whole_heads: a rank gets all heads of its share of them, even if its rows need fewer (for USP).
    """
    ranks = range(shares.num_ranks)
    found = []
    seen = [0] * shares.num_ranks  # heads before this one have come to the rank
    for work in zip(*(shares.chunks_of(rank, num_chunks) for rank in ranks), strict=True):
        needed = [shares.heads_for(boxes) for boxes in work]
        if whole_heads:
            needed = [shares.heads_of(rank) for rank in ranks]
        heads = [_not_seen(box, seen[rank]) for rank, box in enumerate(needed)]
        seen = [max(before, box.last_head) for before, box in zip(seen, heads, strict=True)]
        found.append(ChunkBoxes(work, heads))
    return found


def _not_seen(heads: Box, seen: int) -> Box:
    first = max(heads.first_head, seen)
    return Box(first, max(first, heads.last_head), heads.start, heads.stop)


def _equal_parts(
    start: int, stop: int, parts: int, length: int, multiple: int = ROW_MULTIPLE
) -> tuple[int, ...]:
    """Sizes of start to stop in equal parts, whose inner ends are moved to a multiple of rows.

    Rows are counted from the beginning of every `length`, a head.
    """
    ends = [start]
    for part in range(1, parts):
        head, row = divmod(start + (stop - start) * part // parts, max(1, length))
        row = min(length, (row + multiple // 2) // multiple * multiple)
        ends.append(min(stop, max(ends[-1], head * length + row)))
    return tuple(after - before for before, after in pairwise([*ends, stop]))


def _range_of(sizes: Sequence[int], index: int) -> range:
    stop = list(accumulate(sizes))[index]
    return range(stop - sizes[index], stop)


def _blocks(work: range, num_rows: int) -> Iterator[Box]:
    position = work.start
    while position < work.stop:
        head, row = divmod(position, num_rows)
        whole_heads = (work.stop - position) // num_rows
        if row == 0 and whole_heads:
            block = Box(head, head + whole_heads, 0, num_rows)
        else:
            block = Box(head, head + 1, row, min(num_rows, row + work.stop - position))
        yield block
        position += len(block)
