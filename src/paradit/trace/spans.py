"""Spans of time, recorded by each process of a run to a file of its own.

The recorder is the one thing here that is kept for the whole process and not passed along: spans are taken in
every layer down to the messages, most functions between would carry a recorder for others only, a process
is one rank and writes one file, and nothing that is computed ever reads it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGE = "stage"
"""A stage of a request, which is its argument `request`; or, without one, what comes before all requests."""
STEP = "step"
"""A denoising step, within a stage."""
REHEARSAL = "rehearsal"
"""Forms of attention are tried out, within a step; the messages of it are not recorded."""
LAYER = "layer"
"""A layer of one stream of work; two streams take turns, so their layers overlap."""
MESSAGE = "message"
"""From the start of an exchange between ranks until it is known to have arrived; bytes sent and received."""
EXCHANGE = "exchange"
"""Waiting for messages."""
LINK = "measure link"
"""The name of the stage in which a rank measures its link, for `latency`, `seconds_per_byte` and `device`."""
CHANNEL = "channel"
"""Waiting for another stage: for what it makes, or until it takes what is ready (back-pressure)."""


@dataclass(frozen=True)
class Tracing:
    """Where the ranks of a run record, and how much."""

    folder: Path
    layers: bool = False


@contextmanager
def recording(tracing: Tracing | None, rank: int) -> Iterator[None]:
    """Record this process's spans as rank `rank`'s while the body runs; None: do not."""
    global _recorder  # noqa: PLW0603 (see above)
    if tracing is None:
        yield
        return
    recorder = _recorder = _Recorder(tracing, rank)
    try:
        yield
    finally:
        _recorder = None
        recorder.close()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Record nothing while the body runs, which measures something."""
    global _recorder  # noqa: PLW0603
    before, _recorder = _recorder, None
    try:
        yield
    finally:
        _recorder = before


def is_recording() -> bool:
    """Whether spans are being recorded."""
    return _recorder is not None


def span(name: str, category: str, /, **about: object) -> AbstractContextManager[None]:
    """The time that the body takes. about: plain values, shown with it."""
    return _NOTHING if _recorder is None else _Span(_recorder, name, category, about)


def layer_span(layer: int) -> AbstractContextManager[None]:
    """The same for a layer, where layers are asked for."""
    if _recorder is None or not _recorder.layers:
        return _NOTHING
    return _Span(_recorder, f"layer {layer}", LAYER, {})


def begin(name: str, category: str, /, **about: object) -> int | None:
    """Begin a span that `end` ends, elsewhere; None where nothing is recorded."""
    return None if _recorder is None else _recorder.begin(name, category, about)


def end(number: int | None, **about: object) -> None:
    """End what `begin` gave; about: what is only known now."""
    if number is not None and _recorder is not None:
        _recorder.end(number, about)


class _Recorder:
    """Writes one JSON list a line:
    `begin`, number, time, name, category, about; or `end`, number, time, about.

    Begins and ends apart, so that what a rank was doing when it was killed is known. Times are in nanoseconds
    since 1970: the wall clock once, and from there the steady one, so that spans have their true lengths and
    those of several processes lie right.
    """

    def __init__(self, tracing: Tracing, rank: int) -> None:
        self.layers = tracing.layers
        self._next = 0
        # A rank that is started again must not write over what its first process did. Every line is handed to
        # the system at once: a process that is killed loses none.
        self._file = (tracing.folder / f"{rank}-{os.getpid()}.jsonl").open("w", buffering=1, encoding="utf-8")
        self._zero = time.time_ns() - time.perf_counter_ns()

    def begin(self, name: str, category: str, about: dict[str, Any]) -> int:
        self._next += 1
        self._write("begin", self._next, self._zero + time.perf_counter_ns(), name, category, about)
        return self._next

    def end(self, number: int, about: dict[str, Any]) -> None:
        now = self._zero + time.perf_counter_ns()
        if not self._file.closed:  # a generator that was left may end its span later
            self._write("end", number, now, about)

    def close(self) -> None:
        self._file.close()

    def _write(self, *fields: object) -> None:
        with suppress(OSError):  # a full disk: the work counts, not what is told of it
            self._file.write(json.dumps(fields) + "\n")


class _Span:
    __slots__ = ("_about", "_category", "_name", "_number", "_recorder")

    def __init__(self, recorder: _Recorder, name: str, category: str, about: dict[str, Any]) -> None:
        self._recorder, self._name, self._category, self._about = recorder, name, category, about

    def __enter__(self) -> None:
        self._number = self._recorder.begin(self._name, self._category, self._about)

    def __exit__(self, *_: object) -> None:
        self._recorder.end(self._number, {})


_NOTHING = nullcontext()
_recorder: _Recorder | None = None
