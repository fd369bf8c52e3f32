"""Errors that the command line reports in plain words, without a traceback."""


class InputError(ValueError):
    """Error in what the user asked for; the message is one line with the value and the nearest valid one.

    The command line prints the message and exits with code 2.
    """


class OutOfMemory(RuntimeError):
    """Error raised if memory runs out even with the smallest settings; the message says what was tried."""


class JobError(RuntimeError):
    """Error raised for a job that has failed; the message says why."""


class JobCancelled(JobError):
    """Error raised to a caller that waits for the result of a job that was cancelled."""


class RankError(RuntimeError):
    """Error raised if ranks fail; the message names each failed rank, with its traceback or fatal signal."""
