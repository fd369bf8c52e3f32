"""Ctrl-C and termination as one exception, so that `finally` removes partial files in both cases."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 2.0
"""A second Ctrl-C this soon after the first is taken for the same one: the clean-up goes on."""


class Stopped(BaseException):  # like KeyboardInterrupt: no `except Exception` may hold it up
    """The user, or the system, asked the process to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum
        self.message = "interrupted" if signum == signal.SIGINT else "terminated"


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Within the body, SIGINT and SIGTERM raise `Stopped` in the main thread."""
    last = -GRACE_SECONDS

    def stop(signum: int, _frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= GRACE_SECONDS:
            last = now
            raise Stopped(signum)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
