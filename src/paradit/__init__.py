"""ParaDiT: video generation with diffusion transformers, on one or many GPUs."""

from __future__ import annotations

import logging
from importlib import import_module

from paradit.config.errors import InputError, JobCancelled, JobError, OutOfMemory, RankError
from paradit.version import __version__

logging.getLogger(__name__).addHandler(logging.NullHandler())  # quiet, unless a program sets up logging

# torch takes seconds to import, so it is loaded only with what needs it: `paradit --help` answers at once.
# Type checkers and editors read `__init__.pyi`, which a test compares with this table.
_LATER = {
    "Engine": "paradit.engine.engine",
    "Placement": "paradit.config.placement",
    "Request": "paradit.config.requests",
    "generate": "paradit.text_to_video",
    "parallelize": "paradit.parallel.parallelize",
}
__all__ = [
    "Engine",
    "InputError",
    "JobCancelled",
    "JobError",
    "OutOfMemory",
    "Placement",
    "RankError",
    "Request",
    "__version__",
    "generate",
    "parallelize",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
