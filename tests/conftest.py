"""Settings that all tests share, and their markers."""

import os
import tempfile
from pathlib import Path

import pytest

# One thread, like the ranks of a test's worlds, because results are compared bit for bit and tests run side
# by side. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A cache of their own: tests neither read nor change the choices that the user's runs remember. Set before
# any process is started, so that all processes have it.
_CACHE = tempfile.TemporaryDirectory(prefix="paradit-test-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

KINDS = ("unit", "world", "cli", "gpu")
"""Folders of tests, each of which is a marker; from cheap to dear, the order in which they run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder's name, and put the cheap ones first."""
    for item in items:
        item.add_marker(_kind(item))
    items.sort(key=lambda item: KINDS.index(_kind(item)))


def _kind(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]
