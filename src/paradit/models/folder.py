"""Find a model and check that it is whole, before anything of it is loaded. Torch-free.

A model is the bundled one by its name, a folder in diffusers' format, or a hub id.
"""

from __future__ import annotations

import difflib
import json
import re
from importlib import resources
from pathlib import Path

from paradit.errors import InputError
from paradit.models import hub
from paradit.models.folder_check import check_folder

BUNDLED = "shapes"
"""Name of the model that the package brings."""


def bundled_folder() -> Path:
    return Path(str(resources.files("paradit"))) / "assets" / BUNDLED


def find_model(name: str) -> Path:
    """Folder of the model called `name`, checked; of a hub model only the small files are downloaded.

    Raises `InputError` where there is no such model, or it is incomplete, of an unsupported class, or
    without safetensors. `download_weights` fetches the rest of a hub model.
    """
    if name == BUNDLED:
        folder = bundled_folder()
    else:
        folder = Path(name).expanduser()
        if not folder.exists():
            if not _may_be_hub_id(name):
                raise InputError(_missing(name, folder))
            folder, files = hub.download_configs(name)
            check_folder(name, folder, files)
            return folder
    if not folder.is_dir():
        raise InputError(f"model {name!r} is not a folder: --model takes a folder in diffusers' format")
    try:
        check_folder(name, folder, hub.list_files(folder), local=True)
    except OSError as error:
        raise InputError(f"model {name!r} cannot be read: {error}") from None
    return folder


def download_weights(name: str, folder: Path) -> None:
    """Download the weights of hub model `name` into `folder`, which `find_model` gave; else do nothing."""
    if name == BUNDLED or Path(name).expanduser().exists():
        return
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components = [part for part, value in index.items() if isinstance(value, list) and value[0] is not None]
    hub.download_weights(name, folder, components)


def _may_be_hub_id(name: str) -> bool:
    """Whether `name` reads as `org/name`, and not as a path into a folder that is here."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return False
    return not Path(name).parent.exists()


def _missing(name: str, folder: Path) -> str:
    siblings = (
        [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    )
    close = difflib.get_close_matches(folder.name, [*siblings, BUNDLED], n=1)
    if close:
        found = close[0] if close[0] == BUNDLED else str(folder.parent / close[0])
        return f"model {name!r} is not there: did you mean {found!r}?"
    return f"model {name!r} is not there: give '{BUNDLED}', a folder, or a hub id such as org/name"
