"""Who holds which tokens, and who computes which part of the attention. Torch-free.

Attention over S tokens and H heads is H x S pieces of work of the same size: one query row of one head
against all keys. Counted head by head, any contiguous range of them can be one rank's share; so the work is
divided to within one row of equal whatever S, H and the number of ranks are, and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


def equal_split(total: int, parts: int) -> tuple[int, ...]:
    """`total` in `parts` whole parts that differ by at most one: `equal_split(7, 3)` is `(2, 2, 3)`."""
    ends = [total * part // parts for part in range(parts + 1)]
    return tuple(stop - start for start, stop in pairwise(ends))


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

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.work):
            raise ValueError(f"{len(self.tokens)} ranks hold tokens, {len(self.work)} have work")
        if min(self.tokens) < 0 or min(self.work) < 0:
            raise ValueError(f"a share is negative: tokens {self.tokens}, work {self.work}")
        if sum(self.work) != self.num_heads * self.num_tokens:
            raise ValueError(
                f"the work shares {self.work} make {sum(self.work)}, and {self.num_heads} heads of "
                f"{self.num_tokens} tokens are {self.num_heads * self.num_tokens}"
            )

    @classmethod
    def equal(cls, num_tokens: int, num_heads: int, num_ranks: int) -> Shares:
        """Plain Ulysses: equal tokens, and equal work, over all ranks."""
        return cls(
            num_heads=num_heads,
            tokens=equal_split(num_tokens, num_ranks),
            work=equal_split(num_heads * num_tokens, num_ranks),
        )

    @property
    def num_ranks(self) -> int:
        return len(self.tokens)

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens)

    def tokens_of(self, rank: int) -> list[Box]:
        """What a rank holds: all heads of its tokens, in one box, which may be empty."""
        held = _range_of(self.tokens, rank)
        return [Box(0, self.num_heads, held.start, held.stop)]

    def work_of(self, rank: int) -> list[Box]:
        """The query rows that a rank computes: the end of a head, whole heads, the beginning of one."""
        return list(_blocks(_range_of(self.work, rank), self.num_tokens))

    def heads_of(self, rank: int) -> list[Box]:
        """The keys, or values, that a rank's work needs: all tokens of its heads."""
        work = self.work_of(rank)
        return [Box(work[0].first_head, work[-1].last_head, 0, self.num_tokens)] if work else []


def _range_of(sizes: Sequence[int], index: int) -> range:
    stop = list(accumulate(sizes))[index]
    return range(stop - sizes[index], stop)


def _blocks(work: range, num_tokens: int) -> Iterator[Box]:
    position = work.start
    while position < work.stop:
        head, row = divmod(position, num_tokens)
        whole_heads = (work.stop - position) // num_tokens
        if row == 0 and whole_heads:
            block = Box(head, head + whole_heads, 0, num_tokens)
        else:
            block = Box(head, head + 1, row, min(num_tokens, row + work.stop - position))
        yield block
        position += len(block)
