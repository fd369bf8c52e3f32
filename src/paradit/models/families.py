"""What model families bring that imports torch and diffusers: loaders, schedules, replaced forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from paradit.models.registry import FAMILIES, family, imported

if TYPE_CHECKING:
    from paradit.models.common.replaced import Replacement
    from paradit.models.common.schedulers import Schedule
    from paradit.models.protocol import VideoModel


def loader(pipeline_class: str) -> Callable[..., VideoModel]:
    """The function that loads a family's models; calling this imports torch and diffusers.

    (spec, dtype, device, *, stages, compile, layers) -> VideoModel, with what `stages` need.
    """
    load: Callable[..., VideoModel] = imported(f"{family(pipeline_class).model}.load")
    return load


def schedule(pipeline_class: str) -> Schedule:
    """What sets a scheduler to its steps as a family's pipeline does; calling this imports torch."""
    found: Schedule = imported(f"{family(pipeline_class).model}.schedule")
    return found


def replacement(class_names: Iterable[str]) -> Replacement | None:
    """How a transformer is computed in another way, by the first of these classes that a family knows.

    class_names: of transformers, or of pipelines. Calling this imports torch. None if no family knows one.
    """
    by_class = {
        name: one for one in FAMILIES.all() if one.replacement for name in (*one.pipelines, *one.transformers)
    }
    for name in class_names:
        if name in by_class:
            found: Replacement = imported(by_class[name].replacement)
            return found
    return None


def samples() -> ModuleType:
    """The module with parts of random weights of the first family that has them; imports torch."""
    return import_module(next(one.samples for one in FAMILIES.all() if one.samples))
