"""Attention kernels from diffusers, by the names of its backends."""

from __future__ import annotations

import logging

from torch import Tensor

from paradit.attention.base import Kernel
from paradit.attention.local import sdpa
from paradit.kernels import DEFAULT

_LOG = logging.getLogger(__name__)


def load_kernel(name: str) -> Kernel:
    """The kernel of one of `paradit.kernels.KERNELS`; imports diffusers for all but the default."""
    _LOG.debug("attention backend %s", name)
    if name == DEFAULT:
        return sdpa
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    backend = AttentionBackendName(name)

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = dispatch_attention_fn(query, key, value, backend=backend)
        return out

    return kernel
