"""Waiting for calls into C, such as those that wait for another machine, so that Ctrl-C can end the wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def interruptibly(
    work: Callable[[], T], meanwhile: Callable[[], None] = lambda: None, seconds: float = 5.0
) -> T:
    """Return what `work` returns, or raise what it raises, while signals are still handled.

    A call into C, such as one that waits for another machine, keeps Python from handling a signal until it
    returns. So `work` runs in a thread of its own, and an exception from a signal handler can end the wait at
    any time. meanwhile: function that is called every `seconds` until `work` is done.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    # A daemon thread does not keep the process alive if the wait was ended by a signal.
    Thread(target=run, name="interruptibly", daemon=True).start()
    while not wait([done], seconds).done:
        meanwhile()
    return done.result()
