"""Attention of a site by its pattern: one dense call of the kernel for each group of tokens.

All attention forms whose kernel sees whole rows compute them here. No mask is made, and no copy but that of
one group at a time.
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
    """Compute attention for a head's query rows, or some of them, with the bits of one process's.

    pattern: which keys each query sees; None: all. query: the given rows of each head, [B, rows, H, D]. key,
    value: those of the whole sequence, in its order. start: index of the first given row among the rows of a
    whole head. num_rows: number of rows that one process would compute for a head; None: those given.
    first_row: index in the sequence of a head's first row.
    """
    rows = query.shape[1]
    total = rows if num_rows is None else num_rows
    if pattern is None or pattern == FULL:
        # Whole heads are computed as in one process. Some rows of a head take care to get the same bits.
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
