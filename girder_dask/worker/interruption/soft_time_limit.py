"""Soft time limit: an exception in one thread, once, which the code there may catch."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextvars import Context
from typing import Any

from girder_dask.utils.background import Guard
from girder_dask.worker.interruption.thread_interrupter import (
    ThreadInterrupter,
    withdraw_interrupt,
)

__all__ = ["SoftTimeLimit", "soft_time_limit"]

logger = logging.getLogger(__name__)


class SoftTimeLimit:
    """The limit of a block of code in one thread.

    Parameters
    ----------
    exception
        The class of the exception to raise in the thread that makes this object.
    """

    def __init__(self, exception: type[Exception]) -> None:
        self._exception: Any = exception
        self._ident = threading.get_ident()
        self._lock = threading.RLock()
        self._is_active = True
        self._interrupter = ThreadInterrupter(lambda _: self._is_active, self._lock)
        self._guard = Guard(logger, "Interrupting a task at its soft time limit")

    def expire(self) -> None:
        """Raise the exception in the thread, unless the block was left."""
        with self._guard, self._lock:
            if self._is_active:
                self._interrupter.interrupt([self._ident], self._exception, first=False)

    def end(self) -> None:
        """Leave the block, and withdraw an exception that was not raised yet."""
        with self._lock:
            self._is_active = False
            withdraw_interrupt()


@contextlib.contextmanager
def soft_time_limit(seconds: float, exception: type[Exception]) -> Iterator[None]:
    """Raise an exception in this thread if the block takes longer than some seconds."""
    limit = SoftTimeLimit(exception)
    timer = threading.Timer(seconds, limit.expire)
    timer.daemon = True
    Context().run(timer.start)  # outside of the job's context
    try:
        yield
    finally:
        timer.cancel()
        limit.end()
