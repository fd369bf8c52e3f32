"""What model families bring that imports torch and diffusers: loaders, and samples of random weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import cast

from paradit.config.registry import imported
from paradit.models.protocol import VideoModel
from paradit.models.registry import FAMILIES, family


def loader(pipeline_class: str) -> Callable[..., VideoModel]:
    """The function that loads a family's models; calling this imports diffusers.

    (spec, dtype, device, *, stages, compile, layers) -> VideoModel, with what `stages` need.
    """
    return cast("Callable[..., VideoModel]", imported(f"{family(pipeline_class).model}.load"))


def samples() -> ModuleType:
    """The module with parts of random weights of the first family that has them."""
    return import_module(next(one.samples for one in FAMILIES.all() if one.samples))
