"""Loops in the background that no error ends, and tasks that nobody awaits.

An exception out of a thread or an asyncio task ends it, often without a word. So each step of a
loop is guarded, and what nobody awaits is watched. What asks a loop to end is no ``Exception``
(cancellation, an interruption, ``SystemExit``) and passes through.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from types import TracebackType
from typing import Any, TypeVar, final

__all__ = ["Guard", "watched"]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0

_Awaitable = TypeVar("_Awaitable", asyncio.Task[Any], concurrent.futures.Future[Any])


@final
class Guard:
    """A context manager for the steps of a loop: an exception is logged, and the loop goes on.

    It is logged with its traceback, and the same one in a row only once.

    Parameters
    ----------
    logger
        The logger of the module that the loop is in.
    what
        What the loop does, as the subject of a sentence.
    expected
        Exceptions that an outage causes. They are logged without a traceback.
    first, longest
        Seconds of :attr:`pause` after one failure, and the most after many.

    Examples
    --------
    >>> guard = Guard(logging.getLogger('example'), 'The look at the queue')
    >>> with guard:
    ...     pass
    >>> guard.failed, guard.pause
    (False, 0.0)
    """

    def __init__(
        self,
        logger: logging.Logger,
        what: str,
        *,
        expected: tuple[type[Exception], ...] = (),
        first: float = _FIRST_PAUSE,
        longest: float = _LONGEST_PAUSE,
    ) -> None:
        self._logger = logger
        self._what = what
        self._expected = expected
        self._first = first
        self._longest = longest
        self._told: str | None = None
        #: Seconds to wait before the next step: none after one that went well.
        self.pause = 0.0

    @property
    def failed(self) -> bool:
        """Whether the last step has failed."""
        return self.pause > 0

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None:
            self._went_well()
            return True
        if not isinstance(error, Exception):
            return False
        self.pause = min(max(2 * self.pause, self._first), self._longest)
        # What logs it may be foreign, as the text of an error is, and must not end the loop either.
        with contextlib.suppress(Exception):
            self._tell(error)
        return True

    def _went_well(self) -> None:
        if self._told is not None:
            self._told, self.pause = None, 0.0
            with contextlib.suppress(Exception):
                self._logger.info("%s works again", self._what)

    def _tell(self, error: Exception) -> None:
        is_expected = isinstance(error, self._expected)
        before, self._told = self._told, type(error).__name__  # if it has no text
        self._told = f"{type(error).__name__}: {error}"
        if self._told != before:
            self._logger.log(
                logging.WARNING if is_expected else logging.ERROR,
                "%s failed and goes on: %s",
                self._what,
                self._told,
                exc_info=None if is_expected else error,
            )


def watched(work: _Awaitable, logger: logging.Logger, what: str) -> _Awaitable:
    """Have the exception of a task that nobody awaits logged at once, and return the task."""

    def tell(done: Any) -> None:
        error = None if done.cancelled() else done.exception()
        if isinstance(error, Exception):
            logger.error("%s failed: %s: %s", what, type(error).__name__, error, exc_info=error)

    work.add_done_callback(tell)
    return work
