"""Weights that a component's class has, compared with those that are stored."""

from __future__ import annotations

from pathlib import Path

import torch

from paradit.config.errors import InputError
from paradit.models.common.model_classes import model_class
from paradit.models.folder_json import read_header, weight_files


def unknown(component: Path) -> list[str]:
    """Return the names of stored weights that a component's class does not have, in alphabetical order."""
    return sorted(_stored(component).keys() - _known(component).keys())


def check_stored(component: Path) -> None:
    """Raise InputError if a component's files lack a weight of its class, or have it in another shape."""
    stored = _stored(component)
    for name, shape in _known(component).items():
        if name not in stored:
            raise InputError(f"{str(component)!r} has no tensor {name}, which its configuration calls for")
        if stored[name] != shape:
            raise InputError(
                f"{str(component)!r}: {name} must be a tensor {list(shape)}, as its configuration says, got "
                f"{list(stored[name])}"
            )


def _known(component: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of a component's class, by name."""
    kind = model_class(component)
    with torch.device("meta"):
        module = kind.from_config(kind.load_config(component))
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _stored(component: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a component's stored weights, by name."""
    headers = [read_header(file)[1] for file in weight_files(component)]
    return {name: one.shape for header in headers for name, one in header.items()}
