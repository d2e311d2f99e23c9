"""The threads in which the code of a job runs, and their interruption.

They are the thread of its run, all threads that it has started, and the threads of pools while
they work for the job. A pool may serve other jobs before and after.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from girder_dask.errors import CancelInterrupt, JobInterrupted
from girder_dask.utils.thread_frames import thread_frames
from girder_dask.worker.interruption.guarded_frames import user_position
from girder_dask.worker.interruption.repeated_interrupt import repeated
from girder_dask.worker.interruption.thread_interrupter import (
    ThreadInterrupter,
    withdraw_interrupt,
)
from girder_dask.worker.job_log.log import JobLog

__all__ = ["MAX_INTERRUPTIONS", "JobThreads", "after_fork_in_child", "threads_of"]

#: Interruptions after which a task that goes on is interrupted at each of its lines.
MAX_INTERRUPTIONS = 3

T = TypeVar("T")

#: The module whose threads serve a pool of ``multiprocessing``, its functions that call code of
#: tasks, and the modules with which it waits for work.
_POOL = "multiprocessing.pool"
_CALLERS = ("mapstar", "starmapstar")
_WAITS = ("multiprocessing", "selectors", "threading", "queue")

#: Threads that are daemons only because their creator is.
_inheriting: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_threads: weakref.WeakKeyDictionary[JobLog, JobThreads] = weakref.WeakKeyDictionary()


class JobThreads:
    """The threads of one run of a job.

    Parameters
    ----------
    log
        The log of the run, by which a thread is recognized as the job's.
    """

    def __init__(self, log: JobLog) -> None:
        # Reentrant: the garbage collector may run a __del__ that starts a thread while it is held.
        self._lock = threading.RLock()
        self._entered: dict[int, threading.Thread] = {}
        self._starting: set[threading.Thread] = set()
        self._exception: type[JobInterrupted] | None = None
        self._interruptions = 0
        self._interrupter = ThreadInterrupter(self._is_busy, self._lock)
        self._is_released = False
        self._is_closed = False
        _threads[log] = self

    # -- threads come and go ---------------------------------------------------------------

    def add_starting(self, thread: threading.Thread) -> None:
        """Record a thread that is about to be started and will call :meth:`run_thread`."""
        with self._lock:
            self._starting.add(thread)

    def discard_starting(self, thread: threading.Thread) -> None:
        """Drop a thread that could not be started."""
        with self._lock:
            self._starting.discard(thread)

    def run_thread(self, run: Callable[[], None]) -> None:
        """Run the work of a thread of the job. An interruption ends it without a message."""
        try:
            self._run(run)
        except JobInterrupted:
            if self._exception is None:
                raise

    def for_pool(self, work: Callable[..., T]) -> Callable[..., T]:
        """Wrap ``work`` for a thread that is the job's only while it does this work.

        The work does not start if the job is interrupted after this call.
        """
        since = self._interruptions

        def run(*args: Any, **kwargs: Any) -> T:
            return self._run(functools.partial(work, *args, **kwargs), since)

        return run

    def _run(self, work: Callable[[], T], since: int | None = None) -> T:
        if self.has_this:
            return work()
        try:
            try:
                self.enter(since)
                return work()
            finally:
                self.leave()
        except BaseException:
            self.leave()  # an interruption may have come just before
            raise

    @property
    def has_this(self) -> bool:
        """Whether the calling thread is one of the job's."""
        return threading.get_ident() in self._entered

    def enter(self, since: int | None = None) -> None:
        """Make the calling thread interruptible.

        Parameters
        ----------
        since
            The number of interruptions when the thread was given its work.

        Raises
        ------
        JobInterrupted
            If the job was interrupted since, or has ended because of it.
        """
        thread = threading.current_thread()
        with self._lock:
            self._starting.discard(thread)
            is_late = since is not None and since < self._interruptions
            if (self._is_closed or is_late) and not _serves_pool(thread):
                raise self._exception or CancelInterrupt
            if not self._is_released:
                self._entered[threading.get_ident()] = thread

    def leave(self) -> None:
        """Undo :meth:`enter`, and withdraw an interruption that has not been raised."""
        with self._lock:
            self.withdraw_interrupt()
            self._entered.pop(threading.get_ident(), None)

    def withdraw_interrupt(self) -> None:
        """Withdraw an interruption of the calling thread that has not been raised."""
        with self._lock:
            # With nothing to withdraw, CPython 3.11 hangs where a tracer or a profiler is set.
            if self._interruptions and self.has_this:
                withdraw_interrupt()

    # -- from other threads ----------------------------------------------------------------

    def interrupt(self, exception: type[JobInterrupted]) -> bool:
        """Raise ``exception`` in each thread at its next Python instruction. Return True if any.

        A thread in code where this would harm other jobs is interrupted once it has left it.
        """
        with self._lock:
            if self._is_released:
                return False
            self._exception = exception
            self._interruptions += 1
            busy = list(self._busy())
            raised = repeated(exception) if self._interruptions > MAX_INTERRUPTIONS else exception
            self._interrupter.interrupt(busy, raised, first=self._interruptions == 1)
            return bool(busy)

    def positions(self) -> dict[str, str]:
        """Return the names of threads in which code of the job runs, with its position."""
        with self._lock:
            return {thread.name: user_position(ident) for ident, thread in self._busy().items()}

    def leftover_names(self) -> list[str]:
        """Return the names of other threads that still work for the job.

        A daemon was meant to be left behind, unless it serves a pool.
        """
        with self._lock:
            own = threading.get_ident()
            busy = {t for ident, t in self._busy().items() if ident != own}
            busy |= {thread for thread in self._starting if thread.is_alive()}
            return sorted(thread.name for thread in busy if _is_left(thread))

    def try_close(self) -> bool:
        """Close the job to threads. Return False if its code still runs in one."""
        with self._lock:
            if self._busy() or any(thread.is_alive() for thread in self._starting):
                return False
            self._is_closed = True
            self.release()
            return True

    def release(self) -> None:
        """Interrupt the threads no longer."""
        with self._lock:
            self._is_released = True
            self._entered.clear()
            self._starting.clear()

    def become_forked(self) -> None:
        """Interrupt the threads no longer in a forked child, which ends like any process."""
        self._lock = threading.RLock()
        self._interrupter = ThreadInterrupter(self._is_busy, self._lock)
        self.release()

    def _is_busy(self, ident: int) -> bool:
        return not self._is_released and ident in self._busy()

    def _busy(self) -> dict[int, threading.Thread]:
        frames = thread_frames()
        return {
            ident: thread
            for ident, thread in self._entered.items()
            if thread.is_alive() and not _is_idle(thread, frames.get(ident))
        }


def inherit_daemon(thread: threading.Thread) -> None:
    """Have a thread start as a daemon, like its creator, without being treated as one.

    As a daemon, it does not delay the end of the worker.
    """
    _inheriting.add(thread)


def make_daemon(thread: threading.Thread) -> None:
    """Make a thread that is about to start a daemon, if :func:`inherit_daemon` was called."""
    if thread not in _inheriting or thread.ident is not None:
        return
    if thread.daemon:  # the task has set this itself
        _inheriting.discard(thread)
    thread.daemon = True


def _is_left(thread: threading.Thread) -> bool:
    return not thread.daemon or thread in _inheriting or _serves_pool(thread)


def threads_of(log: JobLog) -> JobThreads | None:
    """Return the threads of a job if the calling thread is one of them, otherwise None.

    The thread of Dask's event loop is not, though it may run a callback in a job's context.
    """
    threads = _threads.get(log)
    return threads if threads is not None and threads.has_this else None


def after_fork_in_child() -> None:
    """Adapt the threads of the parent to a forked child."""
    for threads in list(_threads.values()):
        threads.become_forked()


def _serves_pool(thread: threading.Thread) -> bool:
    return getattr(getattr(thread, "_target", None), "__module__", None) == _POOL


def _is_idle(thread: threading.Thread, frame: FrameType | None) -> bool:
    """Return True if a thread of a pool waits for work, which may come from other jobs."""
    if not _serves_pool(thread):
        return False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module == _POOL:
            return frame.f_code.co_name not in _CALLERS
        if module.partition(".")[0] not in _WAITS:
            return False
        frame = frame.f_back
    return True
