"""Folders of the repository that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository's own folder."""
DATA = ROOT / "tests" / "data"
"""Files that tests compare with or read."""
PLUGIN = ROOT / "tests" / "plugin"
"""Package that extends ParaDiT; tests install copies of it."""
