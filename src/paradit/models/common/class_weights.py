"""Names of the weights that a diffusers class has, compared with those that are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import diffusers
import torch

from paradit.models.folder_json import read_header, read_json, weight_files


def unknown(component: Path) -> list[str]:
    """Return the names of stored weights that a component's class does not have, in alphabetical order."""
    config = read_json(component / "config.json")
    with torch.device("meta"):
        module = cast(Any, getattr(diffusers, config["_class_name"])).from_config(config)
    known = module.state_dict().keys()
    stored = {name for file in weight_files(component) for name in read_header(file)[1]}
    return sorted(stored - known)
