"""The user's wish that a run end, and the exception that ends it. Torch-free."""

from __future__ import annotations

import signal


class Interrupted(BaseException):  # not an Exception, lest an `except Exception` stop it
    """Exception that says that the run has ended after a step, as the user asked, with all progress saved."""


class Stop:
    """The user's wish that a run end after its present step. A signal or a message may set it at any time."""

    def __init__(self) -> None:
        self.heeded = False
        """Whether ranks check for a stop after every step, as they do while latents are denoised."""
        self.wanted = False
        self.signum: int = signal.SIGINT
        """Number of the signal that asked for the stop."""
