"""Interruption of one run: an exception in its threads, at their next Python instruction.

Its subprocesses get signals, since a thread that waits for one executes no instruction.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from girder_dask.errors import CancelInterrupt, JobTimeout, TimeoutInterrupt
from girder_dask.worker.interruption.job_threads import JobThreads
from girder_dask.worker.run.process_tree import ProcessTree

__all__ = ["RunInterruption"]

# How long end_threads() waits per call, and how often it checks.
_WAIT_S = 1.0
_POLL_INTERVAL_S = 0.02
# How long a thread may take to end after its last line.
_FINISH_TIME_S = 0.1


class RunInterruption:
    """Interruption of the threads and processes of a run.

    Parameters
    ----------
    threads
        The threads of the run.
    process_tree
        The processes of the run.

    Attributes
    ----------
    timed_out
        Whether the time limit was reached.
    """

    def __init__(self, threads: JobThreads, process_tree: ProcessTree) -> None:
        self._threads = threads
        self._process_tree = process_tree
        self._lock = threading.Lock()
        self._is_attached = False
        self._is_limited = False
        self.timed_out = False

    def attach(self) -> None:
        """Allow interruptions of the calling thread."""
        self._is_attached = True
        self._threads.enter()

    def detach(self) -> None:
        """Allow no further interruption, and withdraw one that has not been raised yet."""
        self._threads.leave()
        self._is_attached = False

    def expire(self) -> bool:
        """Record that the time limit is reached. Return False if the function has returned."""
        with self._lock:
            self.timed_out = self.timed_out or self._is_limited
            return self.timed_out

    def interrupt(self) -> None:
        """Raise TimeoutInterrupt or CancelInterrupt in the threads of the run.

        Its subprocesses get SIGTERM, and SIGKILL if they still exist at the next call.
        """
        with self._lock:
            exception = TimeoutInterrupt if self.timed_out else CancelInterrupt
            if self._threads.interrupt(exception):
                self._process_tree.terminate()

    def end_threads(self) -> bool:
        """Wait a while for threads that outlive the function. Return True once none is left."""
        start = time.monotonic()
        while time.monotonic() < start + _WAIT_S:
            with self._lock:  # interrupt() ends no processes after this returns
                if self._threads.try_close():
                    return True
            time.sleep(_POLL_INTERVAL_S)
        return False

    def leftovers(self) -> str | None:
        """Return the names of threads and processes that outlive the function, None without any."""
        deadline = time.monotonic() + _FINISH_TIME_S
        while (threads := self._threads.leftover_names()) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL_S)  # a thread may be at its last instruction
        processes = [f"process {pid}" for pid in self._process_tree.unfinished_subprocesses()]
        return ", ".join([*threads, *processes]) or None

    def release(self) -> None:
        """Let threads that outlive the run go on."""
        self._threads.release()

    @property
    def stuck_reason(self) -> str:
        """Why the run does not end although it was interrupted."""
        name, place = next(iter(self._threads.positions().items()), ("", ""))
        return (
            f"its thread{f' {name}' if name and not self._is_attached else ''} cannot be "
            "interrupted: it waits in C code, such as a library call, or catches the exception"
            f"{f' ({place})' if place else ''}"
        )

    @contextlib.contextmanager
    def time_limit(
        self, limit: Callable[[float | None], None], seconds: float | None, job_id: str
    ) -> Iterator[None]:
        """Interrupt the block when it reaches its time limit.

        Parameters
        ----------
        limit
            Has :meth:`expire` called after the given seconds, then :meth:`interrupt` until the
            run has ended. ``None`` removes the limit.

        Raises
        ------
        JobTimeout
            If the block took longer, and has caught the interruption.
        """
        if seconds is None:
            yield
            return
        self._is_limited = True
        limit(seconds)
        try:
            yield
        finally:
            with self._lock:
                self._is_limited = False
                self._threads.withdraw_interrupt()
            if not self.timed_out:
                limit(None)
        if self.timed_out:
            raise JobTimeout(job_id=job_id)
