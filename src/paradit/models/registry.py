"""Model families: which pipelines and transformers each knows, and where its code is. Torch-free.

To add one, see docs/adding_a_model.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from paradit.config.errors import InputError
from paradit.config.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from paradit.models.common.replaced import Replacement
    from paradit.models.common.schedulers import Schedule
    from paradit.models.protocol import VideoModel
    from paradit.models.spec import ModelSpec

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family, as "module:name" texts whose modules are imported when they are needed."""

    pipelines: tuple[str, ...]
    """Classes of the pipelines that are loaded from a folder, as its model_index.json names them."""
    read_spec: str
    """(folder: Path) -> ModelSpec, without torch."""
    model: str | None = None
    """The `PipelineModel` (`models.common.model`) that loads and runs them.

    None: its models can be planned for, but not run.
    """
    components: tuple[str, ...] = COMPONENTS
    """Components that a model folder must hold."""
    transformers: tuple[str, ...] = ()
    """Classes of the diffusers transformers that `parallelize` spreads over ranks, in whichever pipeline."""
    replacement: str = ""
    """The `Replacement` of these transformers."""
    samples: str = ""
    """Module with `random_block` and `random_decoder`, which `calibrate` measures this machine by."""

    @property
    def module(self) -> str:
        """The module that loads models, with all that it imports."""
        assert self.model is not None, f"{self.pipelines} are not run"
        return self.model.partition(":")[0]


FAMILIES: Registry[Family] = Registry(
    "model family",
    "paradit.models",
    {
        "wan": "paradit.models.wan:FAMILY",
        "hunyuan-video": "paradit.models.hunyuan_video:FAMILY",
        "open-sora-plan": "paradit.models.open_sora_plan:FAMILY",
    },
)


def supported_pipelines() -> tuple[str, ...]:
    """The `_class_name`s of model_index.json that we can run."""
    return tuple(name for one in FAMILIES.all() if one.model is not None for name in one.pipelines)


def supported_transformers() -> tuple[str, ...]:
    """The diffusers transformers that `parallelize` takes."""
    return tuple(name for one in FAMILIES.all() for name in one.transformers)


def family(pipeline_class: str) -> Family:
    """The family that runs a diffusers pipeline class; InputError names the supported ones otherwise."""
    found = _with(pipeline_class)
    if found is None or found.model is None:
        supported = ", ".join(supported_pipelines())
        raise InputError(f"pipeline class {pipeline_class!r} is not supported; supported: {supported}")
    return found


def spec_reader(pipeline_class: str) -> Callable[[Path], ModelSpec]:
    """The torch-free reader of a family's model folders, also of one that can only be planned for."""
    found = _with(pipeline_class) or family(pipeline_class)
    reader: Callable[[Path], ModelSpec] = _imported(found.read_spec)
    return reader


def loader(pipeline_class: str) -> Callable[..., VideoModel]:
    """The function that loads a family's models; calling this imports torch and diffusers.

    (spec, dtype, device, *, stages, compile, layers) -> VideoModel, with what `stages` need.
    """
    load: Callable[..., VideoModel] = _imported(f"{family(pipeline_class).model}.load")
    return load


def schedule(pipeline_class: str) -> Schedule:
    """What sets a scheduler to its steps as a family's pipeline does; calling this imports torch."""
    found: Schedule = _imported(f"{family(pipeline_class).model}.schedule")
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
            found: Replacement = _imported(by_class[name].replacement)
            return found
    return None


def samples() -> ModuleType:
    """The module with parts of random weights of the first family that has them; imports torch."""
    return import_module(next(one.samples for one in FAMILIES.all() if one.samples))


def _with(pipeline_class: str) -> Family | None:
    return next((one for one in FAMILIES.all() if pipeline_class in one.pipelines), None)


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    return attrgetter(path)(import_module(module))
