"""Attention by a pattern: one dense call of the kernel for each group of tokens.

Attention forms that give the kernel all keys of a query at once call `attended`. It makes no mask, and copies
the tokens of at most one group at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from paradit.attention.base import Kernel
from paradit.attention.patterns import FULL, Pattern
from paradit.attention.some_rows import some_rows


def attended(
    kernel: Kernel,
    pattern: Pattern | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    start: int = 0,
    num_rows: int | None = None,
    first_row: int = 0,
) -> Tensor:
    """Compute attention for all or some of each head's query rows, bit for bit as one process does.

    pattern: which keys each query sees; None: all. query: the given rows of each head, [B, rows, H, D]. key,
    value: keys and values of the whole sequence, in its order. start: index of the first given row among the
    rows that one process would compute for a head. num_rows: number of those rows; None: as many as are
    given. first_row: index, in the sequence, of the first of those rows.
    """
    rows = query.shape[1]
    total = rows if num_rows is None else num_rows
    if pattern is None or pattern == FULL:
        # For whole heads the call is that of one process. For some rows, `some_rows` gets the same bits.
        if rows == total:
            return kernel(query, key, value)
        return some_rows(kernel, query, key, value, start=start, num_rows=total)
    out = torch.empty_like(query)
    given = first_row + start
    for group in range(pattern.groups):
        whole = pattern.places(group, range(first_row, first_row + total))
        mine = pattern.places(group, range(given, given + rows))
        if not mine:
            continue
        keys = _tokens(pattern, group, pattern.places(group, range(key.shape[1])), key.device)
        queries = _tokens(pattern, group, mine, query.device, before=given)
        out[:, queries] = attended(
            kernel,
            None,
            query[:, queries],
            key[:, keys],
            value[:, keys],
            start=mine.start - whole.start,
            num_rows=len(whole),
        )
    return out


def _tokens(
    pattern: Pattern, group: int, places: range, device: torch.device, before: int = 0
) -> slice | Tensor:
    """Return the index of a group's tokens in a tensor that begins with token `before` of the sequence.

    places: places within the group of the tokens that the tensor has. The index is a slice, which needs no
    copy, if they are equally far apart.
    """
    if pattern.run == 1:
        return slice(places.start * pattern.groups + group - before, None, pattern.groups)
    place = torch.arange(places.start, places.stop, device=device)
    rounds = place // pattern.run
    return place + (rounds * (pattern.groups - 1) + group) * pattern.run - before
