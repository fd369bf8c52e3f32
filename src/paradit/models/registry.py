"""Which pipeline classes we can run, and where their code is; importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from paradit.config.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from paradit.models.common.replaced import Replacement
    from paradit.models.protocol import VideoModel
    from paradit.models.spec import ModelSpec

_COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family, as "module:function" names that are imported when they are called for."""

    read_spec: str
    """(folder: Path) -> ModelSpec, without torch."""
    load: str
    """(spec, dtype, device, *, stages, compile, layers) -> VideoModel; loads what `stages` need."""
    replacement: str
    """The `Replacement` of its diffusers transformers."""
    schedule: str
    """(scheduler, num_inference_steps, device); sets a scheduler to its steps as the pipeline does."""
    components: tuple[str, ...] = _COMPONENTS
    """What a model folder must hold."""

    @property
    def module(self) -> str:
        """The module that loads models, with all that it imports."""
        return self.load.partition(":")[0]


_FAMILIES = {
    "WanPipeline": Family(
        read_spec="paradit.models.wan.spec:read_spec",
        load="paradit.models.wan.adapter:load",
        replacement="paradit.models.wan.forward:REPLACEMENT",
        schedule="paradit.models.common.schedulers:set_by_count",
    ),
    "HunyuanVideoPipeline": Family(
        read_spec="paradit.models.hunyuan_video.spec:read_spec",
        load="paradit.models.hunyuan_video.adapter:load",
        replacement="paradit.models.hunyuan_video.forward:REPLACEMENT",
        schedule="paradit.models.common.schedulers:set_by_sigmas",
        components=(*_COMPONENTS, "text_encoder_2", "tokenizer_2"),
    ),
}

SUPPORTED_PIPELINES: tuple[str, ...] = tuple(_FAMILIES)
"""The `_class_name`s of model_index.json that we can run."""


def family(pipeline_class: str) -> Family:
    """The family of a diffusers pipeline class; InputError names the supported ones otherwise."""
    if pipeline_class not in _FAMILIES:
        supported = ", ".join(SUPPORTED_PIPELINES)
        raise InputError(f"pipeline class {pipeline_class!r} is not supported; supported: {supported}")
    return _FAMILIES[pipeline_class]


def spec_reader(pipeline_class: str) -> Callable[[Path], ModelSpec]:
    """The torch-free reader of a family's model folders."""
    reader: Callable[[Path], ModelSpec] = _imported(family(pipeline_class).read_spec)
    return reader


def loader(pipeline_class: str) -> Callable[..., VideoModel]:
    """The function that loads a family's models; calling this imports torch and diffusers."""
    load: Callable[..., VideoModel] = _imported(family(pipeline_class).load)
    return load


def replacement(pipeline_class: str) -> Replacement:
    """How a family's diffusers transformer is computed in another way; calling this imports torch."""
    found: Replacement = _imported(family(pipeline_class).replacement)
    return found


def schedule(pipeline_class: str) -> Callable[[Any, int, Any], None]:
    """What sets a scheduler to its steps as a family's pipeline does; calling this imports torch."""
    found: Callable[[Any, int, Any], None] = _imported(family(pipeline_class).schedule)
    return found


def _imported(name: str) -> Any:
    module, function = name.split(":")
    return getattr(import_module(module), function)
