"""Log records: shown on stderr if that is wanted, and sent by ranks to their driver. Torch-free.

The driver is the process that hands out work to ranks. Each module has its own logger below `paradit`.
Nothing is shown unless `--verbose` or a program's own `logging` asks for it; then the ranks' records are
shown too.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from paradit.launcher_environment import launched

LOGGER = logging.getLogger("paradit")
"""Parent logger of all modules of ParaDiT."""


@contextmanager
def shown(wanted: bool) -> Iterator[None]:
    """Show every log record on stderr while the `with` block runs, if `wanted`."""
    if not wanted:
        yield
        return
    handler, level = _Shown(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def wanted_level() -> int | None:
    """Return the lowest level of log records that this process wants; None if ranks need not send any."""
    return LOGGER.getEffectiveLevel() if LOGGER.isEnabledFor(logging.INFO) else None


def send_records(level: int, send: Callable[[str, int, float, str], None]) -> None:
    """Call `send` for every log record of this process from now on.

    `send` gets the logger's name, the level, the time and the text. level: lowest level of records that are
    sent.
    """
    LOGGER.addHandler(_Sent(send))
    LOGGER.setLevel(level)


def take_record(rank: int, name: str, level: int, created: float, text: str) -> None:
    """Log a record that a rank has sent; the record's attribute `rank` says which rank it was."""
    about = {"name": name, "levelno": level, "levelname": logging.getLevelName(level), "created": created}
    if (logger := logging.getLogger(name)).isEnabledFor(level):
        logger.handle(logging.makeLogRecord({**about, "msg": text, "rank": rank}))


class _Sent(logging.Handler):
    def __init__(self, send: Callable[[str, int, float, str], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # the driver is gone
            self._send(record.name, record.levelno, record.created, record.getMessage())


class _Shown(logging.Handler):
    """Log handler that prints records on stderr: time, rank (if there are several), module and text."""

    def __init__(self) -> None:
        super().__init__()
        here = launched()
        self._rank = here.rank if here is not None else None

    def emit(self, record: logging.LogRecord) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        rank = getattr(record, "rank", self._rank)
        who = "" if rank is None else f"rank {rank} "
        line = f"{clock}.{int(record.created * 1e3) % 1000:03d} {who}{record.name}: {record.getMessage()}"
        print(line, file=sys.stderr, flush=True)  # not kept: progress bars replace sys.stderr
