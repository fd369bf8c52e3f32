"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable

PATIENCE = 300.0
"""Seconds after which something counts as not happening."""


def wait_for(happened: Callable[[], object], about: Callable[[], str] = str) -> None:
    """Wait until `happened` returns a true value; fails at last, with the text that `about` returns."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, about()
        time.sleep(0.05)
