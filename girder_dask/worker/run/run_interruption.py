"""How the code of a run is stopped in its threads: an exception at their next Python instruction.

The subprocesses that they wait for are ended too, or they would wait for them first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from girder_dask.errors import CancelInterrupt, JobTimeout, TimeoutInterrupt
from girder_dask.worker.concurrency.process_tree import ProcessTree
from girder_dask.worker.interruption.job_threads import JobThreads

__all__ = ["RunInterruption"]

# How long it is waited for threads, and how often it is looked whether one has ended.
_PAUSE = 1.0
_LOOK = 0.02
# How long a thread may take to end that has done its work.
_FINISHING = 0.1


class RunInterruption:
    """The threads of a run, while they may be interrupted.

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
        """Let the calling thread be interrupted from now on."""
        self._is_attached = True
        self._threads.enter()

    def detach(self) -> None:
        """Let it be interrupted no more, and take back what has not happened yet."""
        self._threads.leave()
        self._is_attached = False

    def expire(self) -> bool:
        """Take note that the time of the run is over. False: its function has returned."""
        with self._lock:
            self.timed_out = self.timed_out or self._is_limited
            return self.timed_out

    def interrupt(self) -> None:
        """Raise in the threads of the run, from another one, what says why it is to end.

        Its subprocesses get SIGTERM, and SIGKILL when they are still there the next time.
        """
        with self._lock:
            exception = TimeoutInterrupt if self.timed_out else CancelInterrupt
            if self._threads.interrupt(exception):
                self._process_tree.stop()

    def end_threads(self) -> bool:
        """Wait a while for the threads that the run has left. Say whether none is left."""
        start = time.monotonic()
        while time.monotonic() < start + _PAUSE:
            with self._lock:  # so that nobody stops the processes any more when this returns
                if self._threads.close():
                    return True
            time.sleep(_LOOK)
        return False

    def left(self) -> str | None:
        """Return what goes on although the function has returned, in words. None: nothing."""
        deadline = time.monotonic() + _FINISHING
        while (threads := self._threads.left()) and time.monotonic() < deadline:
            time.sleep(_LOOK)  # one may be at its last instruction
        processes = [f"process {pid}" for pid in self._process_tree.unfinished()]
        return ", ".join([*threads, *processes]) or None

    def release(self) -> None:
        """Let the threads that the run has left go on."""
        self._threads.release()

    @property
    def stuck_reason(self) -> str:
        """What is said of a run that does not end although it is interrupted."""
        name, place = next(iter(self._threads.places().items()), ("", ""))
        return (
            f"its thread{f' {name}' if name and not self._is_attached else ''} cannot be "
            "interrupted: it waits in C code, as in a call of a library, or catches what is raised"
            f"{f' ({place})' if place else ''}"
        )

    @contextlib.contextmanager
    def time_limit(
        self, limit: Callable[[float | None], None], seconds: float | None, job_id: str
    ) -> Iterator[None]:
        """Let what runs within be ended when it takes longer than it may.

        Parameters
        ----------
        limit
            Has :meth:`expire` called after so many seconds, and then :meth:`interrupt` until the
            run has ended. ``None`` takes that back.

        Raises
        ------
        JobTimeout
            If it took longer, and has swallowed what was raised in it.
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
                self._threads.spare()
            if not self.timed_out:
                limit(None)
        if self.timed_out:
            raise JobTimeout(job_id=job_id)
