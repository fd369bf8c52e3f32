"""ParaDiT: video generation with diffusion transformers, on one or many GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paradit.config.errors import InputError, OutOfMemory
from paradit.version import __version__

if TYPE_CHECKING:
    from paradit.parallel.parallelize import parallelize
    from paradit.text_to_video import generate

__all__ = ["InputError", "OutOfMemory", "__version__", "generate", "parallelize"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: it is loaded with what needs it, so `paradit --help` answers at once.
    if name == "generate":
        from paradit.text_to_video import generate

        return generate
    if name == "parallelize":
        from paradit.parallel.parallelize import parallelize

        return parallelize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
