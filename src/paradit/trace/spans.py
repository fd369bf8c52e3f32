"""Recording of a trace: spans of time, which each process of a run writes to a file of its own.

The recorder is global to the process, and nothing else here is. Spans are recorded in every layer of the code
down to the messages, so most functions would take a recorder only to pass it on. The global does no harm: a
process is one rank and writes one file, and no computation ever reads it.
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
"""Trace category of a request's stages, such as denoise; their argument `request` is the request's index.

Spans without that argument, such as the loading of the model, come before all requests.
"""
STEP = "step"
"""Trace category of denoising steps; each lies within the span of a stage."""
REHEARSAL = "rehearsal"
"""Trace category of trials of attention forms (such as Ulysses and ring) to find the fastest. They lie within
a step, and their messages are not recorded."""
LAYER = "layer"
"""Trace category of transformer layers; the layers of two interleaved guidance branches overlap in time."""
MESSAGE = "message"
"""Trace category of exchanges between ranks. A span lasts from the exchange's start until this rank knows
that the data have arrived, and has the bytes sent and received."""
EXCHANGE = "exchange"
"""Trace category of waits for messages of other ranks."""
LINK = "measure link"
"""Name of the trace span in which a rank measures its link to other ranks. Its arguments are the results,
`latency` in seconds and `seconds_per_byte`, and `device`, the type of device such as `cpu`."""
CHANNEL = "channel"
"""Trace category of waits for another stage: until its output arrives, or until it has taken this stage's
output (back-pressure)."""


@dataclass(frozen=True)
class Tracing:
    """Settings of a trace: the folder in which ranks record it, and whether single layers are recorded."""

    folder: Path
    layers: bool = False


@contextmanager
def recording(tracing: Tracing | None, rank: int) -> Iterator[None]:
    """Record this process's spans in the trace of rank `rank` during the `with` body.

    tracing: settings of the trace; None: nothing is recorded.
    """
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
    """Record no spans during the `with` body, such as a measurement whose messages are not the run's."""
    global _recorder  # noqa: PLW0603
    before, _recorder = _recorder, None
    try:
        yield
    finally:
        _recorder = before


def is_recording() -> bool:
    """Return whether spans of a trace are being recorded."""
    return _recorder is not None


def span(name: str, category: str, /, **about: object) -> AbstractContextManager[None]:
    """Record the time that the `with` body takes, as a span of the trace.

    about: plain values that the trace viewer shows with the span.
    """
    return _NOTHING if _recorder is None else _Span(_recorder, name, category, about)


def layer_span(layer: int) -> AbstractContextManager[None]:
    """Record the time of the `with` body as that of a transformer layer, if the trace is to show layers."""
    if _recorder is None or not _recorder.layers:
        return _NOTHING
    return _Span(_recorder, f"layer {layer}", LAYER, {})


def begin(name: str, category: str, /, **about: object) -> int | None:
    """Begin a span of the trace, and return its id, by which `end` ends it; None if nothing is recorded."""
    return None if _recorder is None else _recorder.begin(name, category, about)


def end(number: int | None, **about: object) -> None:
    """End the span of the trace whose id `begin` returned.

    about: plain values, known only at the end, that the trace viewer shows with the span.
    """
    if number is not None and _recorder is not None:
        _recorder.end(number, about)


class _Recorder:
    """Writer of one process's trace file, which has one JSON list per line.

    Lines are `begin`, number, time, name, category, about; or `end`, number, time, about. Begins and ends are
    separate, so that the file shows what a rank was doing when it was killed. Times are in nanoseconds since
    1970: the wall clock is read once and a monotonic clock counts from there, so that spans have their true
    lengths and those of several processes line up.
    """

    def __init__(self, tracing: Tracing, rank: int) -> None:
        self.layers = tracing.layers
        self._next = 0
        # The process number keeps a restarted rank from overwriting its first process's file. Lines are
        # flushed one by one, so that a killed process loses none.
        self._file = (tracing.folder / f"{rank}-{os.getpid()}.jsonl").open("w", buffering=1, encoding="utf-8")
        self._zero = time.time_ns() - time.perf_counter_ns()

    def begin(self, name: str, category: str, about: dict[str, Any]) -> int:
        self._next += 1
        self._write("begin", self._next, self._zero + time.perf_counter_ns(), name, category, about)
        return self._next

    def end(self, number: int, about: dict[str, Any]) -> None:
        now = self._zero + time.perf_counter_ns()
        if not self._file.closed:  # an abandoned generator may end its span later
            self._write("end", number, now, about)

    def close(self) -> None:
        self._file.close()

    def _write(self, *fields: object) -> None:
        with suppress(OSError):  # a full disk must not stop the run
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
