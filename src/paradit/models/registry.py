"""Registry of model families: the pipelines and transformers that each supports, and where its code is.

Does not import torch. To add a family, see docs/development/adding_a_model.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paradit.config.errors import InputError
from paradit.config.plugins import Registry

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family; its code is given as "module:name" strings, so that it is imported only when needed."""

    pipelines: tuple[str, ...]
    """Names of the pipeline classes that can be loaded, as a folder's model_index.json states them."""
    read_spec: str
    """Location, as "module:name", of the function (folder: Path) -> ModelSpec that reads a model's sizes
    without torch."""
    model: str
    """Location, as "module:name", of the `PipelineModel` subclass that loads and runs the family's models."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Mapping from the names of component classes that are the family's own, not diffusers', to their
    locations as "module:name"."""
    presets: Mapping[str, str] = field(default_factory=dict)
    """Mapping from those of `pipelines` that few-step models have to the preset that suits the model."""
    takes_loras: bool = True
    """Whether LoRAs can be merged into the family's models, by diffusers' converter for their pipelines."""
    checkpoint: str = ""
    """Location, as "module:name", of the function (folder: Path, given: Given) -> Checkpoint | None that
    finds a checkpoint in the authors' own format, for `paradit convert`: see `models.checkpoint`."""
    components: tuple[str, ...] = COMPONENTS
    """Names of the components that a model folder must hold."""
    transformers: tuple[str, ...] = ()
    """Names of the diffusers transformer classes that `parallelize` spreads over ranks, in any pipeline."""
    forward_patch: str = ""
    """Location, as "module:name", of the `ForwardPatch` with which `parallelize` replaces `forward` of the
    family's diffusers transformers."""
    samples: str = ""
    """Name of the Python module whose functions make parts of models with random weights, for `calibrate` to
    time. The functions are `random_block` and `random_decoder`."""

    @property
    def module(self) -> str:
        """Name of the Python module that loads the family's models."""
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
    """Return the names of the pipeline classes that ParaDiT can run, as a model_index.json states them."""
    return tuple(name for one in FAMILIES.all() for name in one.pipelines)


def supported_transformers() -> tuple[str, ...]:
    """Return the names of the diffusers transformer classes that `parallelize` takes."""
    return tuple(name for one in FAMILIES.all() for name in one.transformers)


def family(pipeline_class: str) -> Family:
    """Return the model family that runs a diffusers pipeline class.

    Raises InputError, which names the supported classes, if none does.
    """
    found = next((one for one in FAMILIES.all() if pipeline_class in one.pipelines), None)
    if found is None:
        supported = ", ".join(supported_pipelines())
        raise InputError(f"pipeline class {pipeline_class!r} is not supported; supported: {supported}")
    return found
