"""Ctrl-C and termination as one exception, so that `finally` removes partial files in both cases."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from paradit.engine.job import Stop
from paradit.engine.run import is_first_rank

ECHO_SECONDS = 0.5
"""A second signal this soon after the first is the same one, passed on by a program around us."""
STOPPING = b"\nparadit: ending after this step; once more ends at once\n"
GRACE_SECONDS = 2.0
"""A Ctrl-C this soon after the one that ends the process is taken for the same: the clean-up goes on."""


class Stopped(BaseException):  # like KeyboardInterrupt: no `except Exception` may hold it up
    """The user, or the system, asked the process to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum
        self.message = "interrupted" if signum == signal.SIGINT else "terminated"


stop = Stop()
"""What the first signal sets, where a run looks at it after every step; one a process, as signals are."""


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Within the body, SIGINT and SIGTERM raise `Stopped` in the main thread, or first set `stop`."""
    first = last = -GRACE_SECONDS

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        nonlocal first, last
        now = time.monotonic()
        if stop.heeded and not stop.wanted:
            stop.wanted, stop.signum, first = True, signum, now
            with contextlib.suppress(OSError):
                os.write(2, STOPPING if is_first_rank() else b"")
        elif now - first >= ECHO_SECONDS and now - last >= GRACE_SECONDS:
            last = now
            raise Stopped(signum)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
