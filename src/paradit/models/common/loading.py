"""Loading of diffusers pipelines, and fingerprints of loaded weights, for every model family."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from paradit.models.common.lora_weights import lora_weights
from paradit.models.common.stored_weights import StoredWeights
from paradit.models.folder_json import read_index, stored_variant
from paradit.models.registry import family
from paradit.models.spec import IN_FP32, ModelSpec, stage_of

P = TypeVar("P", bound=DiffusionPipeline)

_COMPONENTS = {
    "encode": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    "denoise": ("transformer", "transformer_2"),
    "decode": ("vae", "image_encoder", "image_processor"),
}
"""Mapping from each stage to the names of the pipeline components that it needs, in any model family."""


def load_pipeline(
    pipeline_class: type[P],
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    stages: Collection[str],
    *,
    without_layers: Sequence[str] = (),
) -> P:
    """Load the pipeline components that `stages` need, from a checked folder's safetensors, onto `device`.

    The components of `IN_FP32` stay in fp32, and all others are in `dtype`. without_layers: names of the
    transformers' ModuleLists of layers whose weights are not loaded yet.
    """
    stored = _read_here(spec, dtype, device, stages, layers=not without_layers)
    with _no_progress_bars():
        pipeline = pipeline_class.from_pretrained(
            spec.folder,
            dtype=dict.fromkeys(IN_FP32, torch.float32) | {"default": dtype},
            variant=spec.variant or stored_variant(spec.folder),
            use_safetensors=True,
            local_files_only=True,
            # Moves tensors one by one from the file to the device, so that no second copy of all exists.
            device_map=device.type,
            **_left_out(pipeline_class, stages),
            **dict.fromkeys(stored),  # put in below
        )
    if device.type == "cpu":
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                _let_go_of_files(component)
    pipeline.to(device)  # device_map loads onto the current GPU, which may not be `device`
    for name, weights in stored.items():
        later = without_layers if name in _COMPONENTS["denoise"] else ()
        pipeline.register_modules(**{name: weights.without_layers(later)})  # type: ignore[no-untyped-call]
    return pipeline


def _read_here(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device, stages: Collection[str], *, layers: bool
) -> dict[str, StoredWeights]:
    """Return the readers of those components that `stages` need and diffusers cannot load.

    They are transformers with layers that are read later or with LoRAs in them, and components whose classes
    are not diffusers'. layers: whether transformers are loaded with all layers.
    """
    found = {}
    if "denoise" in stages and (spec.loras or not layers):
        found = stored_transformers(spec, dtype, device)
    classes = family(spec.pipeline_class).classes
    variant = spec.variant or stored_variant(spec.folder)
    for name, value in read_index(spec.folder).items():
        if isinstance(value, list) and value[1] in classes and stage_of(name) in stages and name not in found:
            kept = torch.float32 if name in IN_FP32 else dtype
            found[name] = StoredWeights(spec.folder / name, kept, device, variant)
    return found


def _left_out(pipeline_class: type[DiffusionPipeline], stages: Collection[str]) -> dict[str, None]:
    """Return arguments that make `from_pretrained` skip the components that `stages` do not need."""
    accepted = inspect.signature(pipeline_class.__init__).parameters
    others = [name for stage, names in _COMPONENTS.items() if stage not in stages for name in names]
    return {name: None for name in others if name in accepted}


def stored_transformers(
    spec: ModelSpec, dtype: torch.dtype, device: torch.device
) -> dict[str, StoredWeights]:
    """Return a mapping from the name of each transformer component to the reader of its stored weights."""
    names = _COMPONENTS["denoise"][: len(spec.transformers)]
    variant = spec.variant or stored_variant(spec.folder)
    return {
        name: StoredWeights(spec.folder / name, dtype, device, variant, lora_weights(spec, index))
        for index, name in enumerate(names)
    }


def check_loras(spec: ModelSpec) -> list[str]:
    """Check, without reading weights, that a model's LoRAs fit it, and return warnings about them.

    Raises InputError if one cannot be merged.
    """
    if not spec.loras:
        return []
    stored = stored_transformers(spec, torch.float32, torch.device("cpu")).values()
    return [line for weights in stored for line in weights.check_loras()]


def _let_go_of_files(module: torch.nn.Module) -> None:
    """Copy a mixed-precision module's fp32 tensors out of the memory-mapped weight files, to free the files.

    Needed only on a CPU, where a tensor that is loaded in its stored dtype is a view of the mapped file.
    """
    # If all other tensors are converted to another dtype, the few that diffusers keeps in fp32 would hold
    # whole files in memory.
    if len({parameter.dtype for parameter in module.parameters()}) > 1:
        for parameter in module.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.clone()


def fingerprint(modules: Iterable[Any]) -> bytes:
    """Return a fast fingerprint of loaded weights: about eight values of every parameter, as bytes.

    The fingerprint changes if another checkpoint or a LoRA is loaded.
    """
    values = [
        # In fp32, because numpy has no bfloat16.
        parameter.detach().flatten()[:: max(1, parameter.numel() // 8)].float()
        for module in modules
        for parameter in module.parameters()
    ]
    return torch.cat(values).cpu().numpy().tobytes()


@contextmanager
def without_torchvision_warning() -> Iterator[None]:
    """Context manager that hides a warning that image processors work without torchvision.

    transformers logs it when a pipeline's module that names such a class is imported.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Context manager that hides the libraries' own progress bars; ParaDiT shows its progress instead."""
    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
