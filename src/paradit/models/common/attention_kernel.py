"""Loading of the functions that compute attention, from diffusers, by the names of its attention backends."""

from __future__ import annotations

import logging

from torch import Tensor

from paradit.attention.base import Kernel
from paradit.attention.local_attention import sdpa
from paradit.attention_backends import DEFAULT

_LOG = logging.getLogger(__name__)


def load_kernel(name: str) -> Kernel:
    """Return the function that computes attention with one of diffusers' attention backends.

    name: one of `paradit.attention_backends.ATTENTION_BACKENDS`. Imports diffusers, except for the default.
    """
    _LOG.debug("attention backend %s", name)
    if name == DEFAULT:
        return sdpa
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    backend = AttentionBackendName(name)

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out: Tensor = dispatch_attention_fn(query, key, value, backend=backend)
        return out

    return kernel
