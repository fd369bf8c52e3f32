"""Files left by version 0.1 (tests/data/0.1), and copies of its run folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from paradit.models.folder import bundled_folder
from paths import DATA

FILES = DATA / "0.1"


def run_of(name: str, folder: Path) -> Path:
    """Copy a run folder of 0.1, changed so that its videos are written to `folder`."""
    copy = shutil.copytree(FILES / name, folder / "paradit-runs" / name)
    text = (copy / "run.json").read_text().replace("/elsewhere/shapes", str(bundled_folder()))
    (copy / "run.json").write_text(text.replace("/elsewhere", str(folder)))
    return copy
