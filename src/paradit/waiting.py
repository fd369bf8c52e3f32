"""Waiting for what cannot be interrupted, in a way that can be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def interruptibly(
    work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None, seconds: float = 5.0
) -> T:
    """Return what `work` returns, or raise what it raises, while signals are heeded.

    A call into C, such as one that waits for another machine, keeps Python from looking at a signal until
    it returns. So `work` is done in a thread of its own, and this one can be left by an exception of a signal
    handler at any moment. meanwhile: called again and again, after so many seconds.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, name="interruptibly", daemon=True).start()
    while not wait([done], seconds).done:
        meanwhile()
    return done.result()
