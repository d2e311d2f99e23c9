"""Interruption of threads: an exception at their next Python instruction, and a wakeup.

The wait of a thread is ended if possible: a condition is notified, a socket that is read is shut
down, the tasks of an event loop are canceled. A thread that is writing to a log or importing a
module is interrupted once it has finished that, since an exception there would leave locks of all
jobs in the process behind.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextvars import Context
from types import FrameType
from typing import Any

from girder_dask.errors import JobInterrupted
from girder_dask.utils.background import Guard
from girder_dask.worker.interruption.guarded_frames import (
    current_frame,
    is_guarded,
    is_locking,
    is_stream_frame,
)
from girder_dask.worker.interruption.repeated_interrupt import stop_repeating
from girder_dask.worker.interruption.running_loop import RunningLoop
from girder_dask.worker.interruption.wakeup import wake

__all__ = [
    "ThreadInterrupter",
    "pending_interrupts",
    "raise_pending_interrupt",
    "withdraw_interrupt",
]

logger = logging.getLogger(__name__)

#: Exceptions to raise in threads that may write to a log all the time, by thread identity.
pending_interrupts: dict[int, type[JobInterrupted]] = {}

#: Seconds that a thread has to leave guarded code, and a loop to cancel its tasks.
_MAX_WAIT_S = 1.0
_POLL_INTERVAL_S = 0.005

#: Instructions within which a pending exception is raised.
_MAX_INSTRUCTIONS = 100


class ThreadInterrupter:
    """Interrupter of the threads of one job.

    Parameters
    ----------
    is_wanted
        Returns True if a thread must still be interrupted. Called with ``lock`` held.
    lock
        The lock that is held while a thread is interrupted.
    """

    def __init__(self, is_wanted: Callable[[int], bool], lock: threading.RLock) -> None:
        self._is_wanted = is_wanted
        self._lock = lock

    def interrupt(self, idents: list[int], exception: type[JobInterrupted], *, first: bool) -> None:
        """Raise an exception in threads. The caller holds the lock.

        Parameters
        ----------
        first
            Whether this is their first interruption. It only cancels the tasks of an event loop,
            since their ``finally`` blocks may await something.
        """
        left: dict[int, RunningLoop | None] = {}
        for ident in idents:
            loop = RunningLoop.of(current_frame(ident)) if first else None
            if loop is not None:
                loop.cancel_tasks()
            if loop is not None or not _interrupt(ident, exception):
                left[ident] = loop
        pending_interrupts.update(
            {ident: exception for ident, loop in left.items() if loop is None}
        )
        if left:
            thread = threading.Thread(
                target=self._interrupt_later, args=(left, exception), daemon=True
            )
            Context().run(thread.start)  # outside of the job's context

    def _interrupt_later(
        self, left: dict[int, RunningLoop | None], exception: type[JobInterrupted]
    ) -> None:
        deadline = time.monotonic() + _MAX_WAIT_S
        guard = Guard(
            logger,
            "Interrupting a thread of a job",
            first_delay_s=_POLL_INTERVAL_S,
            max_delay_s=_MAX_WAIT_S,
        )
        while left:
            time.sleep(guard.delay_s or _POLL_INTERVAL_S)
            is_late = time.monotonic() >= deadline
            with guard:
                self._interrupt_left(left, exception, is_late=is_late)
            if guard.failed and is_late:
                return  # the canceller interrupts the job again

    def _interrupt_left(
        self,
        left: dict[int, RunningLoop | None],
        exception: type[JobInterrupted],
        *,
        is_late: bool,
    ) -> None:
        with self._lock:
            for ident, loop in list(left.items()):
                is_done = not self._is_wanted(ident) or (loop is not None and loop.has_canceled)
                was_raised = loop is None and ident not in pending_interrupts
                is_allowed = is_late or loop is None
                if (
                    was_raised
                    or is_done
                    or (is_allowed and _interrupt(ident, exception, is_late=is_late))
                ):
                    if not was_raised:
                        pending_interrupts.pop(ident, None)
                    del left[ident]


def raise_pending_interrupt(text: Any) -> None:
    """Raise the pending interruption of the calling thread, which has written a whole line.

    A thread that writes all the time is rarely in a place where others can interrupt it.
    """
    ident = threading.get_ident()
    if ident in pending_interrupts and text[-1:] in ("\n", b"\n"):
        caller: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the only access
        while caller is not None and is_stream_frame(caller):
            caller = caller.f_back
        if not is_guarded(caller):
            exception = pending_interrupts.pop(ident, None)
            if exception is not None:
                raise exception


def _interrupt(ident: int, exception: type[JobInterrupted], *, is_late: bool = False) -> bool:
    """Raise an exception in a thread and wake it. Return False if that would do harm."""
    frame = current_frame(ident)
    if frame is None:
        return True
    is_harmful = is_locking if is_late else is_guarded
    if is_harmful(frame):
        return False
    _raise_in(ident, exception)
    frame = current_frame(ident)
    if is_harmful(frame):  # the thread has moved on meanwhile
        _raise_in(ident, None)
        return False
    if frame is not None:
        wake(frame)
    loop = RunningLoop.of(frame)
    if loop is not None:
        loop.wake()
    return True


def _raise_in(ident: int, exception: type[BaseException] | None) -> None:
    """Have a thread raise an exception at its next Python instruction; None withdraws it."""
    target = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), target)


def withdraw_interrupt() -> None:
    """Withdraw every interruption of the calling thread that has not been raised."""
    ident = threading.get_ident()
    pending_interrupts.pop(ident, None)
    stop_repeating()
    # Setting None instead would leave a flag in CPython 3.11 with which the whole process hangs
    # as soon as a tracer or a profiler is set.
    try:
        _raise_in(ident, _Withdrawn)
        for _ in range(_MAX_INSTRUCTIONS):
            pass
    except _Withdrawn:
        pass


class _Withdrawn(BaseException):
    """Exception that replaces a withdrawn interruption."""
