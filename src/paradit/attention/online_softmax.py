"""Attention over some of the keys, and merging such parts into attention over all keys (online softmax).

For each part, attention also returns the logarithm of the softmax's sum (log-sum-exp), by which the parts are
weighted (Milakov & Gimelshein, arXiv 1805.02867; Liu et al., Ring Attention, arXiv 2310.01889).
"""

from __future__ import annotations

import torch
from torch import Tensor


def sdpa_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention of [B, S, H, D] tensors, and its log-sum-exp [B, S, H], fp32."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    ops = torch.ops.aten
    if query.device.type == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    # CUDA's flash attention takes only 16-bit floats, and head dims that are multiples of 8.
    elif query.dtype in (torch.float16, torch.bfloat16) and query.shape[3] % 8 == 0:
        out, lse, *_ = ops._scaled_dot_product_flash_attention(q, k, v)
    else:
        out, lse, *_ = ops._scaled_dot_product_efficient_attention(q, k, v, None, True)
        lse = lse[:, :, : q.shape[2]]  # the kernel pads it
    return out.transpose(1, 2), lse.transpose(1, 2).float()


class Merge:
    """Accumulator, in fp32, that merges attention over parts of the keys into attention over all keys.

    The parts may come in any order.
    """

    def __init__(self) -> None:
        self._out: Tensor | None = None
        self._lse: Tensor | None = None

    def add(self, out: Tensor, lse: Tensor) -> None:
        """Add attention over some of the keys: its output [B, S, H, D] and its log-sum-exp [B, S, H]."""
        if self._out is None or self._lse is None:
            self._out, self._lse = out.float(), lse
            return
        # Neither logarithm exceeds that of the sum, so no exponential overflows.
        both = torch.logaddexp(self._lse, lse)
        self._out = self._out * (self._lse - both).exp()[..., None] + out * (lse - both).exp()[..., None]
        self._lse = both

    def result(self, like: Tensor) -> Tensor:
        """Return the merged attention [B, S, H, D]; zeros if no part was added.

        like: a tensor with the result's shape and dtype.
        """
        return torch.zeros_like(like) if self._out is None else self._out.to(like.dtype)
