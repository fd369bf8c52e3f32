"""LoRA files, merged into a transformer's weights while these are read.

The merged weights have the bits of diffusers' `load_lora_weights`, `set_adapters` and `fuse_lora`: the same
operations in the same order and dtype. A file is read layer by layer, so that a rank reads only the parts of
a LoRA whose layers it keeps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import safe_open
from torch import Tensor
from torch.nn import Conv3d, Linear, Module
from torch.nn.functional import conv3d

from paradit.config.errors import InputError
from paradit.config.plugins import imported
from paradit.models.common.tensor_files import check_finite
from paradit.models.folder_json import read_header
from paradit.models.lora import AdapterSettings, Lora, layer_of, read_settings
from paradit.models.registry import family
from paradit.models.spec import ModelSpec

Tensors = dict[str, Tensor]
DOWN, UP, BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
"""Ends of the names of a module's parts of a LoRA: its two factors, and what is added to the bias."""
_PREFIXES = ("transformer.", "diffusion_model.", "lora_unet_")
SHOWN = 3
"""Number of tensor names that a message lists, at most."""


class LoraWeights:
    """Tensors of one LoRA file, which are read and merged as the weights that they change are read."""

    def __init__(self, lora: Lora, convert: Callable[[Tensors], Tensors]) -> None:
        """Set up the reader; nothing is read yet.

        convert: diffusers' function that gives the tensors of a file the names of its own modules.
        """
        self._lora, self._convert = lora, convert
        self._layer: object = ...
        self._tensors: Tensors = {}

    def merged(self, name: str, weight: Tensor, device: torch.device) -> Tensor:
        """Return a weight of the transformer with the LoRA's part of it added, computed on `device`.

        name: the weight's name in the transformer. If the LoRA does not change it, it is returned as it is.
        """
        module, _, kind = name.rpartition(".")
        if (layer := layer_of(name)) != self._layer:
            self._layer, self._tensors = layer, self._read(lambda key: layer_of(key) == layer)
        factors = [self._tensors.get(module + end) for end in ((DOWN, UP) if kind == "weight" else (BIAS,))]
        if kind not in ("weight", "bias") or factors[0] is None:
            return weight
        down, *up = (factor.to(device, weight.dtype) for factor in factors if factor is not None)
        scaling = self._scaling(module)
        return weight.to(device) + (_product(down, up[0], scaling) if up else down * scaling)

    def check(self, transformer: Module) -> list[str]:
        """Check that every tensor of the file can be merged, by names and shapes, and return warnings.

        All values are read, since some that are not finite would make all of the video so. transformer: the
        module to merge it into, which may be on the meta device. Raises InputError.
        """
        tensors = self._converted(self._stand_ins())
        if not tensors:
            raise InputError(f"lora {self._lora.file!r} has no LoRA keys for a transformer")
        if self._settings and self._settings.use_dora:
            raise InputError(f"lora {self._lora.file!r} cannot be merged: it is DoRA")
        modules = dict(transformer.named_modules())
        wrong = [name for name in tensors if not _fits(name, tensors, modules)]
        if wrong:
            shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in wrong[:SHOWN])
            raise InputError(
                f"lora {self._lora.file!r} does not fit {type(transformer).__name__} of this model, which "
                f"has no weights for {shapes}{_more(wrong)}"
            )
        self._check_values()
        left = self._left_out
        if not left:
            return []
        names = ", ".join(left[:SHOWN])
        return [f"lora {self._lora.file!r}: as in diffusers, {names}{_more(left)} are not merged"]

    def _check_values(self) -> None:
        with safe_open(self._lora.path, framework="pt") as stored:
            for key in self._shapes:
                check_finite(f"lora {self._lora.file!r}", key, stored.get_tensor(key))

    def _scaling(self, module: str) -> float:
        """Return the factor of a module's part, computed as peft does: scale x alpha / rank."""
        settings, scale = self._settings, self._lora.scale
        if settings is None:
            return scale  # diffusers has multiplied the factors by any alphas in the file
        rank = _of_pattern(settings.rank_pattern or {}, module, settings.r)
        alpha = _of_pattern(settings.alpha_pattern or {}, module, settings.lora_alpha)
        return scale * alpha / (math.sqrt(rank) if settings.use_rslora else rank)

    @cached_property
    def _settings(self) -> AdapterSettings | None:
        """Settings of the adapter that diffusers wrote into the file; None if there are none."""
        with safe_open(self._lora.path, framework="pt") as stored:
            return read_settings(self._lora.file, stored.metadata())

    @cached_property
    def _shapes(self) -> Tensors:
        """Tensors without values, by their names in the file."""
        _, header = read_header(Path(self._lora.path))
        return {key: torch.empty(one.shape, device="meta") for key, one in header.items()}

    @cached_property
    def _left_out(self) -> list[str]:
        """Names of the tensors that diffusers' converter leaves out: differences of norms and the like."""
        whole = {key: tensor for key, tensor in self._stand_ins().items() if ".diff" in key}
        kept = {id(tensor) for tensor in self._converted(self._stand_ins() | whole).values()}
        return [key for key, tensor in whole.items() if id(tensor) not in kept]

    def _read(self, wanted: Callable[[str], bool]) -> Tensors:
        """Return the LoRA's tensors by diffusers' names; those of unwanted keys are left out of the result.

        The converter needs all keys, so tensors without values stand in for those that are not read.
        """
        tensors = self._stand_ins()
        with safe_open(self._lora.path, framework="pt") as stored:
            for key in filter(wanted, tensors):
                tensors[key] = stored.get_tensor(key)
        return self._converted(tensors)

    def _stand_ins(self) -> Tensors:
        # The converter reads the values of alphas.
        return {
            key: torch.ones(one.shape) if key.endswith(".alpha") else one for key, one in self._shapes.items()
        }

    def _converted(self, tensors: Tensors) -> Tensors:
        try:
            found = self._convert(_with_prefix(tensors))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"lora {self._lora.file!r} cannot be converted by diffusers ({type(error).__name__}: {error})"
            ) from None
        found = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
        if any("lora_A" in name for name in found):
            return found
        return cast("Tensors", convert_unet_state_dict_to_peft(found))  # type: ignore[no-untyped-call]


def lora_weights(spec: ModelSpec, index: int) -> tuple[LoraWeights, ...]:
    """Return the readers of the LoRAs of a model's transformer number `index`, in the order of merging.

    Raises InputError if diffusers has no LoRAs for the model's pipelines.
    """
    loras = [lora for lora in spec.loras if lora.index == index]
    if not loras:
        return ()
    convert = getattr(imported(f"{family(spec.pipeline_class).model}.PIPELINE"), "lora_state_dict", None)
    if convert is None:
        raise InputError(f"the model {spec.name!r} takes no LoRAs: diffusers has none for its pipeline")
    return tuple(LoraWeights(lora, convert) for lora in loras)


def _product(down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """Return the product of a LoRA's two factors, scaled, in their dtype, with the operations of peft."""
    dtype = down.dtype
    if down.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
        down, up = down.float(), up.float()
    product = up @ down if down.ndim == 2 else conv3d(down.transpose(0, 1), up).transpose(0, 1)
    return (product * scaling).to(dtype)


def _fits(name: str, tensors: Tensors, modules: dict[str, Module]) -> bool:
    """Return whether a tensor of a LoRA has its counterpart in the file and a module to be merged into."""
    end = next((end for end in (DOWN, UP, BIAS) if name.endswith(end)), None)
    module = modules.get(name.removesuffix(end)) if end else None
    if end is None or not isinstance(module, Linear | Conv3d):
        return False
    if end == BIAS:
        return module.bias is not None and module.bias.shape == tensors[name].shape
    down, up = (tensors.get(name.removesuffix(end) + part) for part in (DOWN, UP))
    if (
        down is None
        or up is None
        or not down.numel()
        or down.ndim != up.ndim
        or down.ndim != module.weight.ndim
    ):
        return False
    outer = (module.weight.shape[0], down.shape[0], *(1 for _ in down.shape[2:]))
    return down.shape[1:] == module.weight.shape[1:] and up.shape == outer


def _with_prefix(tensors: Tensors) -> Tensors:
    """Return the tensors with the prefix by which diffusers knows the form of the names, if it is missing."""
    tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
    if any(key.startswith(_PREFIXES) for key in tensors):
        return tensors
    is_original = any(re.search(r"(self|cross)_attn\.", key) for key in tensors)
    prefix = "diffusion_model." if is_original else "transformer."
    return {prefix + key: tensor for key, tensor in tensors.items()}


def _of_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """Return a module's own value among values by regular expression, matched as peft matches them."""
    return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _more(names: list[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
