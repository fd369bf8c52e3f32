"""Flag by which the user asks a run to end, and the exception that then ends it. Torch-free."""

from __future__ import annotations

import signal


class Interrupted(BaseException):  # not an Exception, lest an `except Exception` stop it
    """Exception that ends a run after a step because the user asked for that; all progress is saved."""


class Stop:
    """Flag that asks a run to end after its present step; a signal or a message may set it at any time."""

    def __init__(self) -> None:
        self.heeded = False
        """Whether ranks now check this flag after every step, which they do only while they denoise."""
        self.wanted = False
        self.signum: int = signal.SIGINT
        """Number of the signal that set the flag."""
