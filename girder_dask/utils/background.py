"""Background loops that survive errors, and asyncio tasks that nothing awaits.

An exception out of a thread or an asyncio task ends it, often without a message. So each step of a
loop is guarded, and tasks that nothing awaits are watched. Requests to end (cancellation, an
interruption, ``SystemExit``) are not of class ``Exception`` and pass through.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, final

from girder_dask.utils.backoff import Backoff
from girder_dask.utils.error_log import ErrorLog, describe

__all__ = ["Guard", "log_failure", "repeat", "start_thread_once"]

_FIRST_DELAY_S, _MAX_DELAY_S = 0.5, 15.0

_Awaitable = TypeVar("_Awaitable", asyncio.Task[Any], concurrent.futures.Future[Any])


@final
class Guard:
    """Context manager around each step of a loop: it logs an exception and lets the loop continue.

    An exception is logged with its traceback, and the same one in a row only once.

    Parameters
    ----------
    logger
        The logger of the module with the loop.
    what
        What the loop does, as the subject of a sentence.
    expected
        Exceptions that an outage causes. They are logged without a traceback.
    first_delay_s, max_delay_s, jitter
        The :class:`~girder_dask.utils.backoff.Backoff` of :attr:`delay_s`.

    Examples
    --------
    >>> guard = Guard(logging.getLogger('example'), 'The check of the queue')
    >>> with guard:
    ...     pass
    >>> guard.failed, guard.delay_s
    (False, 0.0)
    """

    def __init__(
        self,
        logger: logging.Logger,
        what: str,
        *,
        expected: tuple[type[Exception], ...] = (),
        first_delay_s: float = _FIRST_DELAY_S,
        max_delay_s: float = _MAX_DELAY_S,
        jitter: float = 0.5,
    ) -> None:
        self._what = what
        self._errors = ErrorLog(logger, expected=expected)
        self._backoff = Backoff(min(first_delay_s, max_delay_s), max_delay_s, jitter)
        self._failures = 0
        #: Seconds to wait before the next step; 0 after a success.
        self.delay_s = 0.0

    @property
    def failed(self) -> bool:
        """Whether the last step failed."""
        return self._failures > 0

    @property
    def error(self) -> str | None:
        """The error of the last step in one line, None if it succeeded."""
        return self._errors.error

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            self._failures, self.delay_s = 0, 0.0
            self._errors.recovered("%s works again", self._what)
            return True
        if not isinstance(error, Exception):
            return False
        self._failures += 1
        self.delay_s = self._backoff.delay_s(self._failures)
        self._errors.failed(error, "%s failed and continues: %s", self._what)
        return True


async def repeat(step: Callable[[], Any], guard: Guard, *, interval_s: float = 0.0) -> None:
    """Run a step again and again until cancelled. No error of a step ends it.

    Parameters
    ----------
    step
        A function or coroutine function. It may return the number of seconds until the next step.
    guard
        Guards each step. After a failed step, its delay applies if it is longer.
    interval_s
        Seconds between two steps, unless a step returns another number.
    """
    while True:
        delay_s = None
        with guard:
            delay_s = step()
            if inspect.isawaitable(delay_s):
                delay_s = await delay_s
        if delay_s is None or guard.failed:
            delay_s = interval_s
        await asyncio.sleep(max(delay_s, guard.delay_s))


def log_failure(work: _Awaitable, logger: logging.Logger, what: str) -> _Awaitable:
    """Log the exception of a task that nothing awaits as soon as it fails. Return the task."""

    def log(done: Any) -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, Exception):
            logger.error("%s failed: %s", what, describe(error), exc_info=error)

    work.add_done_callback(log)
    return work


def start_thread_once(name: str, target: Callable[[], None]) -> None:
    """Start a daemon thread unless this process has one of that name."""
    if not any(thread.name == name for thread in threading.enumerate()):
        threading.Thread(target=target, name=name, daemon=True).start()
