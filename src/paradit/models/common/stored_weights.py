"""Reader of a diffusers model's weights, part by part, from its folder straight to the device.

A rank may lack memory for all layers of a model. If layers are divided among ranks, each rank therefore reads
only its own.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import safe_open
from torch.nn import Module

from paradit.config.errors import InputError
from paradit.models.common.lora_weights import LoraWeights
from paradit.models.common.model_classes import ModelClass, model_class
from paradit.models.folder_json import weight_files

M = TypeVar("M", bound=Module)


class StoredWeights:
    """Weights of one pipeline component, which are read from its folder when they are needed.

    All weights get one dtype, except those that the component's class keeps in fp32, as `from_pretrained`
    does it. Then LoRAs are merged into them, weight by weight.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        variant: str | None = None,
        loras: Sequence[LoraWeights] = (),
    ) -> None:
        self._folder, self._dtype, self._device, self._variant = folder, dtype, device, variant
        self._loras = loras

    def check_loras(self) -> list[str]:
        """Check, without reading weights, that the LoRAs fit the component, and return warnings about them.

        Raises InputError if one does not fit.
        """
        module = self._empty() if self._loras else None
        return [line for lora in self._loras if module is not None for line in lora.check(module)]

    def without_layers(self, lists: Sequence[str]) -> Module:
        """Return the component with its weights loaded, except for its layers, which stay on the meta device.

        lists: the names of its ModuleLists of layers.
        """
        module = self._empty()
        # Set the layers aside while the rest is filled and moved: nothing can be moved from the meta device.
        layers = {name: getattr(module, name) for name in lists}
        for name in lists:
            setattr(module, name, torch.nn.ModuleList())
        self._fill(module, "")
        module.to(self._device)  # moves buffers that are computed, not stored
        for name, part in layers.items():
            setattr(module, name, part)
        return module

    def _empty(self) -> Module:
        with init_empty_weights():
            return self._class.from_config(self._class.load_config(self._folder)).eval()

    def filled(self, part: M, name: str) -> M:
        """Return a copy of `part`, a module on the meta device, with its weights loaded.

        name: the part's name in the component.
        """
        # Keep the empty module, because the layer may be freed and read again.
        part = copy.deepcopy(part)
        self._fill(part, f"{name}.")
        return part

    def _fill(self, part: Module, prefix: str) -> None:
        for file, names in self._by_file(f"{prefix}{name}" for name in part.state_dict()).items():
            with safe_open(file, framework="pt") as stored:
                for name in names:
                    dtype = self._dtype_of(name)
                    tensor = stored.get_tensor(name).to(dtype)
                    for lora in self._loras:
                        tensor = lora.merged(name, tensor, self._device)
                    if dtype != self._dtype and self._device.type == "cpu":
                        tensor = tensor.clone()  # a view would keep the whole mapped file in memory
                    # clear_cache would empty the GPU's cache after every tensor.
                    set_module_tensor_to_device(
                        part, name.removeprefix(prefix), self._device, tensor, dtype, clear_cache=False
                    )

    def _dtype_of(self, name: str) -> torch.dtype:
        in_fp32 = self._class._keep_in_fp32_modules or ()
        # By whole parts of the tensor's name, as from_pretrained compares them.
        return torch.float32 if any(word in in_fp32 for word in name.split(".")) else self._dtype

    def _by_file(self, names: Iterable[str]) -> dict[Path, list[str]]:
        found = defaultdict(list)
        for name in names:
            if name not in self._files:
                raise InputError(f"{self._folder} has no weights for {name}: copy the model again")
            found[self._files[name]].append(name)
        return found

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Mapping from each tensor's name to the path of the weights file that holds the tensor."""
        found = {}
        for path in weight_files(self._folder, self._variant):
            with safe_open(path, framework="pt") as stored:
                found.update(dict.fromkeys(stored.keys(), path))
        return found

    @cached_property
    def _class(self) -> ModelClass:
        return model_class(self._folder)
