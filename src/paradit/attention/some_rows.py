"""Attention for some of a head's query rows, bit for bit as if it were computed for all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from paradit.attention.base import Kernel

FEW = 16
"""Smallest number of query rows for which torch's CPU attention rounds as it does for many rows."""


def some_rows(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, *, start: int = 0, num_rows: int | None = None
) -> Tensor:
    """Compute attention for some of a head's query rows, bit for bit as if it were computed for all of them.

    query: the given rows of each head, [B, rows, H, D]. start: index of the first given row in the whole
    head. num_rows: number of query rows that a whole head has; None: as many as it has keys.

    On a CPU, torch computes query rows in blocks. The last block may be small, and then its matrix products
    may use other instructions: this was seen for up to 10 rows, depending on head dim, number of keys and
    processor. On some processors, a small block that stands alone also differs from one that follows another.
    So every given row is computed in the kind of block that has it in the whole head. Copies (x) fill it up:

        the whole head   |---- full ----|---- full ----|---- full ----|small|
        the given rows                      [ ...... body ........... |tail ]

        body, computed   |---- body ----|-- body xxxx|      its last block is not small either
        tail, computed   |xxxxxxxxxxxxxx|xtail|             a small block of the same length, after a full one

    This holds for head dims of at least 16, and numbers of keys that leave a remainder of more than three
    when divided into blocks of 512.
    """
    total, rows = num_rows or key.shape[1], query.shape[1]
    if query.device.type != "cpu" or rows == 0:  # the rest is about torch's attention on CPUs
        return kernel(query, key, value)
    small = total % _block(total)  # rows in the whole head's last block
    if small >= FEW:  # it rounds like a full block
        small = 0
    in_tail = min(rows, max(0, start + rows - (total - small))) if small else 0
    body, tail = query[:, : rows - in_tail], query[:, rows - in_tail :]
    parts = []
    if in_tail < rows:
        parts.append(_body(kernel, body, key, value))
    if in_tail:
        # A full block comes first only if the whole head has one.
        before = small - in_tail + (_block(1) if total > small else 0)
        filled = torch.cat([tail[:, :1].expand(-1, before, -1, -1), tail], dim=1)
        parts.append(kernel(filled, key, value)[:, before:])
    return torch.cat(parts, dim=1)


def _body(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention for rows that are in full blocks among all of a head's rows."""
    rows = query.shape[1]
    missing = FEW - rows % _block(rows)
    if 0 < missing < FEW:  # the last block would be small; if it is empty, all FEW rows are missing
        query = torch.cat([query, query[:, :1].expand(-1, missing, -1, -1)], dim=1)
    return kernel(query, key, value)[:, :rows]


def _block(rows: int) -> int:
    """Return how many query rows torch's CPU attention computes at a time if a head has `rows` query rows."""
    # As in ATen's FlashAttentionKernel.cpp for CPUs.
    return 32 if rows < 192 else 64 if rows < 768 else 256
