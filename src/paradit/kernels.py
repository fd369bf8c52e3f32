"""Attention kernels by name, and what each can do. Torch-free, so that a mistake is answered at once.

The names are those of diffusers' attention backends.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from paradit.config.errors import InputError

HALF = ("bf16",)
ANY = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel."""

    package: str | None = None
    """What must be installed besides torch."""
    cpu: bool = False
    """Whether it runs on a CPU; all run on a GPU, given the right one."""
    dtypes: tuple[str, ...] = HALF
    lse: bool = False
    """Whether we get its log-sum-exp, which some forms of attention need."""


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
    """Refuse a kernel that is not there. Raises InputError."""
    if name not in list(KERNELS):  # what a file says need not be a text
        raise InputError(f"kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    kernel = KERNELS[name]
    if kernel.package is not None and find_spec(kernel.package) is None:
        there = ", ".join(n for n, k in KERNELS.items() if k.package is None or find_spec(k.package))
        raise InputError(f"kernel {name!r} needs the package {kernel.package!r}; there are: {there}")


def require_lse(name: str, attention: str) -> None:
    """Refuse a kernel for a form of attention that needs its log-sum-exp. Raises InputError."""
    if not KERNELS[name].lse:
        able = ", ".join(n for n, k in KERNELS.items() if k.lse)
        raise InputError(f"{attention} needs a kernel that gives its log-sum-exp: {able}, not {name!r}")


def check_kernel_on(name: str, device: str, dtype: str) -> None:
    """Refuse a kernel on a device, `cpu` or `cuda`, or with a dtype, that it cannot do. Raises InputError."""
    kernel = KERNELS[name]
    if device == "cpu" and not kernel.cpu:
        able = ", ".join(n for n, k in KERNELS.items() if k.cpu)
        raise InputError(f"kernel {name!r} needs a GPU, and there is none; on a CPU: {able}")
    if dtype not in kernel.dtypes:
        raise InputError(f"kernel {name!r} takes {' or '.join(kernel.dtypes)}, got {dtype}")
