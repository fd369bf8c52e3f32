"""Functions for tests of code that runs on several ranks: `run_world` starts real gloo processes here."""

from paradit.testing.run_world import WorldError, run_world

__all__ = ["WorldError", "run_world"]
