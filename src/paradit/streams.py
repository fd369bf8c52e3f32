"""Replacement of the standard streams, so that no work fails because a message cannot be written.

A stream may be closed, full or of another encoding, or its reader may have gone. What cannot be written then
is lost, and the work goes on.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO


def make_safe() -> None:
    """Replace this process's standard streams by ones to which writing never raises.

    To be called before anything opens a file. A missing stream becomes /dev/null: otherwise the next file or
    socket to be opened would get its number, and messages would be written into that.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = _safe(sys.stdout, 1), _safe(sys.stderr, 2)


def says_utf8() -> bool:
    """Return whether stdout is encoded in UTF-8, which can write any text."""
    return (sys.stdout.encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")


def code_of_output() -> int:
    """Return the exit code of a command that only prints: 1 if some of its output was lost.

    The loss is reported on stderr, unless the reader has closed the pipe because it had all that it wanted.
    """
    sys.stdout.flush()
    lost = sys.stdout.lost if isinstance(sys.stdout, _SafeText) else None
    if lost is None:
        return 0
    if lost.errno != errno.EPIPE:
        print(f"paradit: error: the output cannot be written: {lost.strerror}", file=sys.stderr)
    return 1


class _SafeText(io.TextIOWrapper):
    """Text stream that drops what cannot be written, instead of raising."""

    def __init__(self, number: int, like: io.TextIOWrapper | None) -> None:
        self._raw = _SafeFile(number, "w", closefd=False)
        super().__init__(
            io.BufferedWriter(self._raw),
            encoding=like.encoding if like is not None else "utf-8",
            errors=like.errors if like is not None and like.errors in _KEPT else "backslashreplace",
            line_buffering=number == 2 or (like is not None and like.line_buffering),
            write_through=like is not None and like.write_through,
        )

    @property
    def lost(self) -> OSError | None:
        """Error that caused some of the output to be lost; None if nothing was lost."""
        return self._raw.lost


_KEPT = ("replace", "ignore", "xmlcharrefreplace", "namereplace")
"""Names of Python's encoding error handlers that never raise; a stream that has one of them keeps it."""


class _SafeFile(io.FileIO):
    lost: OSError | None = None

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            while (written := super().write(view)) is None:  # the pipe is non-blocking and full
                select.select([], [self.fileno()], [])
        except OSError as error:
            self.lost = error
            return view.nbytes
        return written


def _safe(stream: TextIO | None, number: int) -> TextIO:
    """Return a stream that never raises when text is written to it.

    A stream that is not an `io.TextIOWrapper`, because a program has replaced the standard one, is returned
    unchanged.
    """
    if isinstance(stream, _SafeText) or not (stream is None or isinstance(stream, io.TextIOWrapper)):
        return stream
    if stream is not None:  # what it has buffered comes before what is written from now on
        with suppress(OSError):
            stream.flush()
    return _SafeText(number, stream)
