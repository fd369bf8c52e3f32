"""Lookup of the classes of a model's components: diffusers', or a model family's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import diffusers
from torch.nn import Module

from paradit.config.plugins import imported
from paradit.models.folder_json import read_json
from paradit.models.registry import FAMILIES


class ModelClass(Protocol):
    """Interface of diffusers' model classes: only the members that readers of weights use."""

    @property
    def _keep_in_fp32_modules(self) -> list[str] | None: ...

    def load_config(self, folder: Path, /) -> dict[str, Any]: ...

    def from_config(self, config: dict[str, Any], /) -> Module: ...


def model_class(component: Path) -> ModelClass:
    """Return the class that the configuration in a component's folder names."""
    name = read_json(component / "config.json")["_class_name"]
    own = next((one.classes[name] for one in FAMILIES.all() if name in one.classes), None)
    return cast("ModelClass", imported(own) if own else getattr(diffusers, name))
