"""Errors that the command line reports in plain words, without a traceback."""


class InputError(ValueError):
    """Error in what the user asked for; the message is one line with the value and the nearest valid one.

    The command line prints the message and exits with code 2.
    """


class OutOfMemory(RuntimeError):
    """Failure to find memory, with nothing smaller left to try; the message says what was tried."""


class JobError(RuntimeError):
    """Failure of a job; the message says why."""


class JobCancelled(JobError):
    """Cancellation of a job, raised to whoever waits for its result."""


class RankError(RuntimeError):
    """Failure of one or more ranks; the message has each one's number and its traceback or signal."""
