"""Names of the weights that a component's class has, compared with those that are stored."""

from __future__ import annotations

from pathlib import Path

import torch

from paradit.models.common.model_classes import model_class
from paradit.models.folder_json import read_header, weight_files


def unknown(component: Path) -> list[str]:
    """Return the names of stored weights that a component's class does not have, in alphabetical order."""
    kind = model_class(component)
    with torch.device("meta"):
        module = kind.from_config(kind.load_config(component))
    known = module.state_dict().keys()
    stored = {name for file in weight_files(component) for name in read_header(file)[1]}
    return sorted(stored - known)
