"""File in which results of measurements on this machine are stored, so that nothing is measured twice."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
from pathlib import Path

import torch

from paradit.files import changing, write_whole

_LOG = logging.getLogger(__name__)


class Remembered:
    """Store of measured results, such as the fastest form of attention, in a file in the user's cache folder.

    A file that cannot be read or written counts as empty.
    """

    def __init__(self, path: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._path = path or cache / "paradit" / "quickest.json"

    def find(self, what: str) -> str | None:
        """Return the result that is stored for this machine under the key `what`; None if there is none."""
        found = self._read().get(f"{_machine()}: {what}")
        _LOG.debug("%s remembers %s of %s", self._path, found or "nothing", what)
        return found if isinstance(found, str) else None

    def keep(self, what: str, best: str) -> None:
        """Store the result `best` for this machine under the key `what`; other results are kept.

        Processes that store results at the same time do not lose each other's.
        """
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with changing(self._path):
                content = json.dumps({**self._read(), f"{_machine()}: {what}": best}, indent=1)
                write_whole(self._path, content.encode())
                _LOG.debug("%s keeps %s of %s", self._path, best, what)

    def _read(self) -> dict[str, object]:
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(self._path.read_text())
            if isinstance(content, dict):
                return content
        return {}


def _machine() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.node()}, {gpu}, torch {torch.__version__}"
