"""Lookup of the parts of model families that import torch: model loaders, and parts with random weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import cast

from paradit.config.plugins import imported
from paradit.models.protocol import VideoModel
from paradit.models.registry import FAMILIES, family


def loader(pipeline_class: str) -> Callable[..., VideoModel]:
    """Return the function that loads models of a diffusers pipeline class. Imports diffusers.

    The function is (spec, dtype, device, *, stages, compile, layers) -> VideoModel. It loads only the
    components that `stages` need.
    """
    return cast("Callable[..., VideoModel]", imported(f"{family(pipeline_class).model}.load"))


def samples() -> ModuleType:
    """Return a Python module whose functions make parts of models with random weights, for measurements.

    The module belongs to the first model family that has one.
    """
    return import_module(next(one.samples for one in FAMILIES.all() if one.samples))
