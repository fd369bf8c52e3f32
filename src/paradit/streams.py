"""The standard streams, made safe: work never fails by the telling of it.

A stream may be closed, full, of another encoding, or its reader may have gone. What then cannot be said is
lost, and the work goes on.
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
    """Make this process's standard streams safe. To be called before anything opens a file.

    A missing stream becomes /dev/null: otherwise the next file or socket to be opened gets its number, and
    whatever is said goes into that.
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
    """Whether stdout takes any text as it is."""
    return (sys.stdout.encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")


def code_of_output() -> int:
    """The exit code of a command whose output is all that it makes: 1 if some of it was lost.

    The line that says so is left out where the reader has gone: it has all that it wanted.
    """
    sys.stdout.flush()
    lost = sys.stdout.lost if isinstance(sys.stdout, _SafeText) else None
    if lost is None:
        return 0
    if lost.errno != errno.EPIPE:
        print(f"paradit: error: the output cannot be written: {lost.strerror}", file=sys.stderr)
    return 1


class _SafeText(io.TextIOWrapper):
    """Text for a stream that may fail."""

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
        """Why something of it was lost."""
        return self._raw.lost


_KEPT = ("replace", "ignore", "xmlcharrefreplace", "namereplace")
"""Error handlers that the user may have chosen and that never fail."""


class _SafeFile(io.FileIO):
    lost: OSError | None = None

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            while (written := super().write(view)) is None:  # a pipe that does not block, and is full
                select.select([], [self.fileno()], [])
        except OSError as error:
            self.lost = error
            return view.nbytes
        return written


def _safe(stream: TextIO | None, number: int) -> TextIO:
    """The stream made safe, unless somebody has put another one in its place."""
    if isinstance(stream, _SafeText) or not (stream is None or isinstance(stream, io.TextIOWrapper)):
        return stream
    if stream is not None:
        with suppress(OSError):
            stream.flush()
    return _SafeText(number, stream)
