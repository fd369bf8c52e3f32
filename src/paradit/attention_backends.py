"""Attention backends (kernels that compute attention) by diffusers' names, and what each needs and can do.

Torch-free, so that a wrong name is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from paradit.config.errors import InputError

HALF = ("bf16",)
ANY = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class AttentionBackend:
    """Description of an attention backend: what it needs, and what it can do."""

    package: str | None = None
    """Name of the package that the attention backend needs besides torch; None if it needs none."""
    cpu: bool = False
    """Whether the attention backend runs on a CPU; every backend runs on a GPU of the right kind."""
    dtypes: tuple[str, ...] = HALF
    lse: bool = False
    """Whether ParaDiT can get this backend's log-sum-exp, which some attention forms, such as ring, need."""


DEFAULT = "native"
ATTENTION_BACKENDS = {
    "native": AttentionBackend(cpu=True, dtypes=ANY, lse=True),
    "_native_math": AttentionBackend(cpu=True, dtypes=ANY),
    "_native_efficient": AttentionBackend(dtypes=ANY),
    "_native_flash": AttentionBackend(),
    "_native_cudnn": AttentionBackend(),
    "flash": AttentionBackend(package="flash_attn"),
    "_flash_3": AttentionBackend(package="flash_attn_interface"),
    "sage": AttentionBackend(package="sageattention"),
    "xformers": AttentionBackend(package="xformers", dtypes=ANY),
}


def check_backend(name: str) -> None:
    """Refuse an attention backend that is unknown or not installed. Raises InputError."""
    if name not in list(ATTENTION_BACKENDS):  # a list, because a value from a file may not be hashable
        raise InputError(f"attention_backend must be one of {', '.join(ATTENTION_BACKENDS)}, got {name!r}")
    backend = ATTENTION_BACKENDS[name]
    if backend.package is not None and find_spec(backend.package) is None:
        there = ", ".join(
            n for n, b in ATTENTION_BACKENDS.items() if b.package is None or find_spec(b.package)
        )
        raise InputError(
            f"attention_backend {name!r} needs the package {backend.package!r}; installed: {there}"
        )


def require_lse(name: str, attention: str) -> None:
    """Refuse an attention backend without log-sum-exp if the attention form needs it. Raises InputError.

    attention: name of the attention form (how ranks share attention), for the error message.
    """
    if not ATTENTION_BACKENDS[name].lse:
        able = ", ".join(n for n, b in ATTENTION_BACKENDS.items() if b.lse)
        raise InputError(
            f"{attention} needs an attention backend that returns its log-sum-exp: {able}, not {name!r}"
        )


def check_backend_on(name: str, device: str, dtype: str) -> None:
    """Refuse an attention backend that cannot run on a device, or with a dtype. Raises InputError.

    device: `cpu` or `cuda`.
    """
    backend = ATTENTION_BACKENDS[name]
    if device == "cpu" and not backend.cpu:
        able = ", ".join(n for n, b in ATTENTION_BACKENDS.items() if b.cpu)
        raise InputError(f"attention_backend {name!r} needs a GPU, and there is none: on a CPU, use {able}")
    if dtype not in backend.dtypes:
        raise InputError(f"attention_backend {name!r} needs dtype {' or '.join(backend.dtypes)}, got {dtype}")
