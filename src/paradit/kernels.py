"""Attention backends, by diffusers' names, and what each can do.

Torch-free, so that a wrong name is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from paradit.config.errors import InputError

HALF = ("bf16",)
ANY = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """Description of an attention backend: what it needs, and what it can do."""

    package: str | None = None
    """Name of the package that the attention backend needs besides torch; None if it needs none."""
    cpu: bool = False
    """Whether the attention backend runs on a CPU; all run on a GPU of the right kind."""
    dtypes: tuple[str, ...] = HALF
    lse: bool = False
    """Whether ParaDiT can get the attention backend's log-sum-exp, which some attention forms need."""


DEFAULT = "native"
KERNELS = {
    "native": Kernel(cpu=True, dtypes=ANY, lse=True),
    "_native_math": Kernel(cpu=True, dtypes=ANY),
    "_native_efficient": Kernel(dtypes=ANY),
    "_native_flash": Kernel(),
    "_native_cudnn": Kernel(),
    "flash": Kernel(package="flash_attn"),
    "_flash_3": Kernel(package="flash_attn_interface"),
    "sage": Kernel(package="sageattention"),
    "xformers": Kernel(package="xformers", dtypes=ANY),
}


def check_kernel(name: str) -> None:
    """Refuse an attention backend that is unknown or not installed. Raises InputError."""
    if name not in list(KERNELS):  # a list, because a value from a file may not be hashable
        raise InputError(f"kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    kernel = KERNELS[name]
    if kernel.package is not None and find_spec(kernel.package) is None:
        there = ", ".join(n for n, k in KERNELS.items() if k.package is None or find_spec(k.package))
        raise InputError(f"kernel {name!r} needs the package {kernel.package!r}; there are: {there}")


def require_lse(name: str, attention: str) -> None:
    """Refuse an attention backend without log-sum-exp if the attention form needs it. Raises InputError.

    attention: name of the attention form, for the error message.
    """
    if not KERNELS[name].lse:
        able = ", ".join(n for n, k in KERNELS.items() if k.lse)
        raise InputError(f"{attention} needs a kernel that gives its log-sum-exp: {able}, not {name!r}")


def check_kernel_on(name: str, device: str, dtype: str) -> None:
    """Refuse an attention backend that cannot run on a device, or with a dtype. Raises InputError.

    device: `cpu` or `cuda`.
    """
    kernel = KERNELS[name]
    if device == "cpu" and not kernel.cpu:
        able = ", ".join(n for n, k in KERNELS.items() if k.cpu)
        raise InputError(f"kernel {name!r} needs a GPU, and there is none; on a CPU: {able}")
    if dtype not in kernel.dtypes:
        raise InputError(f"kernel {name!r} takes {' or '.join(kernel.dtypes)}, got {dtype}")
