"""How a run is asked to end, and that it has. Torch-free."""

from __future__ import annotations

import signal


class Interrupted(BaseException):  # no `except Exception` may hold it up
    """The run has ended after a step, as the user asked, with all saved."""


class Stop:
    """The user's wish that a run end after its present step. A signal or a message sets it, at any time."""

    def __init__(self) -> None:
        self.heeded = False
        """Whether somebody looks at it: while latents are denoised."""
        self.wanted = False
        self.signum: int = signal.SIGINT
        """Which signal said so."""
