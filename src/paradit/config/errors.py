"""Errors that the command line reports in plain words, without a traceback."""


class InputError(ValueError):
    """What was asked for cannot be done; the message is one line naming the value and the nearest that works.

    The command line prints the message and exits with code 2.
    """


class OutOfMemory(RuntimeError):
    """Memory ran out, and nothing smaller is left to try; the message says what was tried."""


class JobError(RuntimeError):
    """A job has failed; the message says why."""


class JobCancelled(JobError):
    """A job was cancelled."""


class RankError(RuntimeError):
    """Ranks failed; the message has each one's number and its traceback or signal."""
