"""The one exception that means: what the user asked for cannot be had."""


class InputError(ValueError):
    """What was asked for cannot be done; the message is one line naming the value and the nearest that works.

    The command line prints the message and exits with code 2.
    """


class OutOfMemory(RuntimeError):
    """Memory ran out, and nothing smaller is left to try; the message says what was tried."""
