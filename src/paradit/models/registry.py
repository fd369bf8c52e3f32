"""Model families: which pipelines and transformers each knows, and where its code is. Torch-free.

To add one, see docs/development/adding_a_model.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from paradit.config.errors import InputError
from paradit.config.registry import Registry

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
    found = find_family(pipeline_class)
    if found is None or found.model is None:
        supported = ", ".join(supported_pipelines())
        raise InputError(f"pipeline class {pipeline_class!r} is not supported; supported: {supported}")
    return found


def find_family(pipeline_class: str) -> Family | None:
    """The family of a pipeline class, also one that can only be planned for; None if there is none."""
    return next((one for one in FAMILIES.all() if pipeline_class in one.pipelines), None)
