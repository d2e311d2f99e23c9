"""Waits of a job's threads that an interruption ends at once.

Waiting C code cannot be interrupted before it returns. In a job, ``time.sleep`` and
``Thread.join`` therefore wait for a :class:`Latch`, which another thread can wake.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Latch", "end_latch", "join_in_job", "sleep_in_job", "wake"]

#: The shortest sleep that is replaced. Shorter ones end soon by themselves.
_MIN_SLEEP_S = 0.05

#: Latches that open when the threads that jobs have started end.
_ends: weakref.WeakKeyDictionary[threading.Thread, Latch] = weakref.WeakKeyDictionary()


class Latch:
    """A barrier that is closed until it is opened for good.

    It holds no lock, so a thread that is interrupted in it leaves none behind.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._waiters: list[Any] = []

    def open(self) -> None:
        """Release all threads that wait now or later."""
        self._is_open = True
        for waiter in list(self._waiters):
            _release(waiter)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the latch is open, for at most ``seconds``. Return True if it is."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            return _wait(self, waiter, seconds)
        finally:
            self._waiters.remove(waiter)


def _wait(latch: Latch, waiter: Any, seconds: float | None) -> bool:
    if seconds is None:
        while not latch._is_open:  # noqa: SLF001 - wake() knows its code
            waiter.acquire()
        return True
    deadline = time.monotonic() + seconds
    while not latch._is_open and (left := deadline - time.monotonic()) > 0:  # noqa: SLF001
        # A thread that is woken spuriously waits on.
        waiter.acquire(True, min(left, threading.TIMEOUT_MAX))
    return latch._is_open  # noqa: SLF001


def _release(waiter: Any) -> None:
    with contextlib.suppress(RuntimeError):  # another thread has released it
        waiter.release()


def wake(frame: FrameType) -> bool:
    """Wake a thread whose innermost frame waits for a latch. Return False if it does not."""
    if frame.f_code is not _wait.__code__:
        return False
    _release(frame.f_locals["waiter"])
    return True


def end_latch(thread: threading.Thread) -> Latch:
    """Return the latch to open at the end of a thread that a job starts."""
    return _ends.setdefault(thread, Latch())


def sleep_in_job(in_job: Callable[[], bool], original: Callable[[Any], None]) -> Callable[..., Any]:
    """Return the replacement of ``time.sleep``."""

    def sleep(seconds: Any, /) -> None:
        is_plain = (
            isinstance(seconds, (int, float)) and _MIN_SLEEP_S <= seconds < threading.TIMEOUT_MAX
        )
        if is_plain and in_job():
            Latch().wait(seconds)
        else:
            original(seconds)

    return sleep


def join_in_job(in_job: Callable[[], bool], original: Callable[..., None]) -> Callable[..., None]:
    """Return the replacement of ``Thread.join``."""

    @functools.wraps(original)
    def join(self: threading.Thread, timeout: float | None = None) -> None:
        end = _ends.get(self)
        if end is None or self is threading.current_thread() or not in_job():
            original(self, timeout)
            return
        start = time.monotonic()
        if end.wait(timeout):  # the interpreter soon does the rest
            original(self, timeout and max(timeout - (time.monotonic() - start), 0.0))

    return join
