"""Conversion of SIGINT and SIGTERM to one exception, so that `finally` blocks remove partial files."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from paradit.launcher_environment import is_spoken_for
from paradit.stopping import Stop

ECHO_SECONDS = 0.5
"""Seconds after the first signal in which further signals are ignored, because a parent process may pass on
the same signal again."""
STOPPING = b"\nparadit: ending after this step; once more ends at once\n"
GRACE_SECONDS = 2.0
"""Seconds after the signal that ends the process in which others are ignored, so that clean-up can finish."""
AGAIN_SECONDS = 0.25
"""Seconds after which a signal's exception is raised again, if it could not be raised or was swallowed."""


class Stopped(BaseException):  # like KeyboardInterrupt: no `except Exception` may hold it up
    """Exception that ends the process because the user, or the system, asked for that."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum
        self.message = "interrupted" if signum == signal.SIGINT else "terminated"


stop = Stop()
"""Flag that the first signal sets and that a run reads after every step.

There is one per process, because signals go to the process.
"""


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` in the main thread while the `with` block runs.

    While ranks check the flag `stop` after every step, the first signal only sets that flag. If a library
    swallows the exception, it is raised once more after `AGAIN_SECONDS`.
    """
    first = last = -GRACE_SECONDS  # long enough ago: the first signal counts at any time of the clock
    ending = signal.SIGINT.value

    def on_signal(signum: int, frame: FrameType | None) -> None:
        nonlocal first, last, ending
        now = time.monotonic()
        if stop.heeded and not stop.wanted:
            stop.wanted, stop.signum, first = True, signum, now
            with contextlib.suppress(OSError):
                # Not by print, which raises if the signal has interrupted another print to the stream.
                os.write(2, b"" if is_spoken_for() else STOPPING)
        elif now - first >= ECHO_SECONDS and now - last >= GRACE_SECONDS:
            last, ending = now, signum
            # A library may swallow the exception, as Python itself does in callbacks, above all while modules
            # are imported. So the timer raises it again until the process is cleaning up.
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
            on_alarm(signum, frame)

    def on_alarm(_signum: int, frame: FrameType | None) -> None:
        # Not in top-level code of a module, because torch calls such code from places that must not raise.
        imports = frame is not None and frame.f_code.co_name == "<module>"
        if not imports and not _is_stopping():
            raise Stopped(ending)

    handlers = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal, signal.SIGALRM: on_alarm}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook, sys.unraisablehook = sys.unraisablehook, _say_unraisable
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_stopping() -> bool:
    """Return whether the main thread is handling a `Stopped`, as when it runs `finally` blocks to clean up.

    That is so even if another exception has been raised meanwhile.
    """
    error = sys.exception()
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error is not None


def _say_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    if unraisable.exc_type is not Stopped:  # swallowed by a callback, it is raised again
        sys.__unraisablehook__(unraisable)
