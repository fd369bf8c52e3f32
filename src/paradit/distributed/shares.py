"""Division of tokens and attention work among ranks. Imports no torch.

Attention over S rows and H heads consists of H x S pieces of work of equal size: one query row of one head
against all keys. If the pieces are counted head by head, any contiguous range of pieces can be one rank's
share. Therefore the shares are equal to within one row for any S, H and number of ranks, and nothing is
padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

ROW_MULTIPLE = 4
"""Number of rows to a multiple of which the ends of token ranges, and of chunks within a head, are rounded.

A CPU may compute very few rows of a head with other instructions, which round differently.
"""


@dataclass(frozen=True)
class Box:
    """Rectangle of tokens x heads: tokens start to stop, heads first_head to last_head, ends excluded."""

    first_head: int
    last_head: int
    start: int
    stop: int

    def __len__(self) -> int:
        return (self.last_head - self.first_head) * (self.stop - self.start)

    def intersect(self, other: Box) -> Box | None:
        """Return the overlap of two rectangles of tokens x heads; None if they do not overlap."""
        box = Box(
            max(self.first_head, other.first_head),
            min(self.last_head, other.last_head),
            max(self.start, other.start),
            min(self.stop, other.stop),
        )
        return box if box.first_head < box.last_head and box.start < box.stop else None


@dataclass(frozen=True)
class Shares:
    """Division of an attention among ranks: the tokens that each one holds, and the rows that it computes."""

    num_heads: int
    tokens: tuple[int, ...]
    """Numbers of tokens that the ranks hold, one per rank; may be zero."""
    work: tuple[int, ...]
    """Numbers of (head, query row) pairs whose attention the ranks compute, one per rank; may be zero."""
    num_replicated: int = 0
    """Number of tokens, such as text tokens, that are not divided among ranks: each rank holds all of them,
    except ranks that only compute attention. They follow the divided tokens."""
    num_helpers: int = 0
    """Number of ranks, the last ones, that hold no tokens and only compute attention."""

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
        """Return equal shares of tokens and of attention for all ranks, as in plain Ulysses.

        A share of attention is a number of (head, query row) pairs.
        """
        num_rows = num_tokens + num_replicated
        return cls(
            num_heads=num_heads,
            tokens=_equal_parts(0, num_tokens, num_ranks, num_tokens),
            work=_equal_parts(0, num_heads * num_rows, num_ranks, num_rows, multiple=1),
            num_replicated=num_replicated,
        )

    def with_helpers(self, work: Sequence[int]) -> Shares:
        """Return these shares with further ranks, which hold no tokens and only compute attention.

        work: for each further rank, the number of (head, query row) pairs that it computes. The present ranks
        keep their tokens, and divide the remaining pairs equally.
        """
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
        """Number of ranks that hold tokens; they come before those that only compute attention."""
        return self.num_ranks - self.num_helpers

    @property
    def num_tokens(self) -> int:
        """Total number of tokens that are divided among the ranks, without the replicated ones."""
        return sum(self.tokens)

    @property
    def most_heads(self) -> int:
        """Largest number of heads that a rank works on, rounded up to whole heads."""
        return -(-max(self.work) // self.num_rows)

    @property
    def num_rows(self) -> int:
        """Number of query rows in each head's attention: divided tokens and replicated ones together."""
        return self.num_tokens + self.num_replicated

    def tokens_of(self, rank: int) -> Box:
        """Return the box (rectangle of tokens x heads) that a rank holds: its own tokens in all heads."""
        held = _range_of(self.tokens, rank)
        return Box(0, self.num_heads, held.start, held.stop)

    @property
    def replicated(self) -> Box:
        """Box (tokens x heads) of the tokens, such as text, that every rank holds instead of a part of them.

        Ranks that only compute attention do not hold them.
        """
        return Box(0, self.num_heads, self.num_tokens, self.num_rows)

    def held_by(self, rank: int) -> list[Box]:
        """Return all boxes of tokens x heads that a rank holds: its own tokens, then the replicated ones.

        A rank that holds no tokens has one empty box.
        """
        is_holder = self.num_replicated and rank < self.num_holders
        return [self.tokens_of(rank), *([self.replicated] if is_holder else [])]

    def work_of(self, rank: int) -> list[Box]:
        """Return the query rows that a rank computes, as boxes (rectangles of tokens x heads).

        There are up to three: the end of one head, several whole heads, and the start of another head.
        """
        return list(_blocks(_range_of(self.work, rank), self.num_rows))

    def chunks_of(self, rank: int, count: int) -> list[list[Box]]:
        """Return the query rows that a rank computes, in `count` chunks of boxes, some of which may be empty.

        The chunks consist of whole heads if the rank has enough of them.
        """
        work = _range_of(self.work, rank)
        # With whole heads, the keys of a head travel with one chunk only.
        multiple = self.num_rows if len(work) >= count * self.num_rows else ROW_MULTIPLE
        sizes = _equal_parts(work.start, work.stop, count, self.num_rows, multiple)
        ends = [work.start, *(work.start + end for end in accumulate(sizes))]
        return [list(_blocks(range(*both), self.num_rows)) for both in pairwise(ends)]

    def heads_for(self, work: Sequence[Box]) -> Box:
        """Return the box (tokens x heads) of the keys, or values, that some query rows attend to.

        It has all tokens of the heads to which the query rows belong. work: the query rows.
        """
        first, last = (work[0].first_head, work[-1].last_head) if work else (0, 0)
        return Box(first, last, 0, self.num_rows)

    def heads_of(self, rank: int) -> Box:
        """Return the box (tokens x heads) that a rank gets if all heads are divided equally among the ranks.

        Parts of heads are rounded up to whole ones, so two neighbouring ranks may both get a head.
        """
        first = self.num_heads * rank // self.num_ranks
        last = -(-self.num_heads * (rank + 1) // self.num_ranks)
        return Box(first, last, 0, self.num_rows)


Boxes = Sequence[Sequence[Box]]
"""Type of a list, in rank order, of the boxes (rectangles of tokens x heads) of each rank. A rank's boxes do
not overlap."""


def common_parts(source: Sequence[Box], target: Sequence[Box]) -> list[tuple[int, int, Box]]:
    """Return the overlaps of two lists of boxes, as triples (index in `source`, index in `target`, overlap).

    The order depends only on the two lists, so that sender and receiver agree on it.
    """
    pairs = ((i, j, a.intersect(b)) for i, a in enumerate(source) for j, b in enumerate(target))
    return [(i, j, box) for i, j, box in pairs if box is not None]


def boxes_given(
    source: Boxes, sender: int, receiver: int, replicated: Sequence[Box] = (), num_helpers: int = 0
) -> Sequence[Box]:
    """Return the boxes (rectangles of tokens x heads) from which `sender` sends parts to `receiver`.

    source: for each rank, the boxes that it holds. replicated: boxes that every rank except the last
    `num_helpers` holds in addition. They are sent only to these last ranks, the helpers, which hold nothing
    and only compute attention: to the first helper from the first rank, to the second from the second, and so
    on.
    """
    holders = len(source) - num_helpers
    helper = receiver - holders
    # Helpers are spread over the holders, so that one holder need not send to all of them.
    return [*source[sender], *replicated] if helper >= 0 and sender == helper % holders else source[sender]


def rows_between(
    source: Boxes, target: Boxes, replicated: Sequence[Box] = (), num_helpers: int = 0
) -> list[list[int]]:
    """Return how many (token, head) rows each rank sends to each other rank, as a matrix [sender][receiver].

    source, target: for each rank, the boxes of tokens x heads that it holds, and those that it needs.
    replicated: boxes that every rank except the last `num_helpers` holds in addition.
    """

    def rows(sender: int, receiver: int) -> int:
        boxes = boxes_given(source, sender, receiver, replicated, num_helpers)
        return sum(_common_rows(a, b) for a in boxes for b in target[receiver])

    ranks = range(len(source))
    return [[0 if one == other else rows(one, other) for other in ranks] for one in ranks]


def _common_rows(a: Box, b: Box) -> int:
    """Return the number of (token, head) rows in the overlap of two boxes."""
    heads = min(a.last_head, b.last_head) - max(a.first_head, b.first_head)
    rows = min(a.stop, b.stop) - max(a.start, b.start)
    return heads * rows if heads > 0 and rows > 0 else 0


@dataclass(frozen=True)
class ChunkBoxes:
    """One chunk of an attention, whose data travel separately: what each rank computes and receives."""

    work: Boxes
    """Query rows that each rank computes in this chunk, as boxes (rectangles of tokens x heads)."""
    new_heads: Sequence[Box]
    """For each rank, a box (tokens x heads) of the keys and values that it receives with this chunk, without
    those that it received with earlier chunks."""


def chunk_boxes(shares: Shares, num_chunks: int, *, whole_heads: bool = False) -> list[ChunkBoxes]:
    """Divide an attention into chunks; return what each rank computes and receives in each chunk.

    shares: the ranks' shares of tokens and of attention (pairs of head and query row). whole_heads: whether
    each rank receives the keys and values of an equal part of the heads, even those that its query rows do
    not need. USP and long videos require this: there a rank's heads must not depend on its query rows.
    """
    ranks = range(shares.num_ranks)
    found = []
    seen = [0] * shares.num_ranks  # each rank has received the heads before this one
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
    """Divide a range of attention rows into nearly equal parts, and return the number of rows in each part.

    The range, from `start` to `stop`, counts the rows of all heads, head by head. length: number of rows in
    each head. multiple: number of rows, from the beginning of a head, to a multiple of which the ends between
    parts are rounded.
    """
    ends = [start]
    for part in range(1, parts):
        # Round within the head, but not beyond its end, nor before the end of the previous part.
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
        # As many whole heads as possible make one box; what is left of a head makes another.
        if row == 0 and whole_heads:
            block = Box(head, head + whole_heads, 0, num_rows)
        else:
            block = Box(head, head + 1, row, min(num_rows, row + work.stop - position))
        yield block
        position += len(block)
