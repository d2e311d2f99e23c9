"""How the code of a run is stopped in its threads: an exception at their next Python instruction.

The subprocesses that they wait for are ended too, or they would wait for them first.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextvars import Context

from girder_dask.errors import JobTimeout
from girder_dask.logs.threads import JobThreads
from girder_dask.offspring import Offspring

__all__ = ["MANY", "Interruption"]

#: After so many interruptions it is said that they do not help.
MANY = 3

# A task that swallows an interruption is interrupted again.
_PAUSE = 1.0
# How often it is looked whether a thread has ended.
_LOOK = 0.02


class Interruption:
    """The threads of a run, while they may be interrupted.

    Parameters
    ----------
    threads
        The threads of the run.
    offspring
        The processes of the run.

    Attributes
    ----------
    timed_out
        Whether the time limit was reached.
    """

    def __init__(self, threads: JobThreads, offspring: Offspring) -> None:
        self._threads = threads
        self._offspring = offspring
        self._lock = threading.Lock()
        self._is_attached = False
        self.timed_out = False

    def attach(self) -> None:
        """Let the calling thread be interrupted from now on."""
        self._is_attached = True
        self._threads.enter()

    def detach(self) -> None:
        """Let it be interrupted no more, and take back what has not happened yet."""
        self._threads.leave()
        self._is_attached = False

    def interrupt(self, exception: type[Exception]) -> None:
        """Raise ``exception`` in the threads of the run, from another one.

        Its subprocesses get SIGTERM, and SIGKILL when they are still there the next time.
        """
        with self._lock:
            if self._threads.interrupt(exception):
                self._offspring.stop()

    def end_threads(self) -> bool:
        """Wait a while for the threads that the run has left. Say whether none is left.

        Those of a run that has reached its time limit are interrupted.
        """
        if self.timed_out:
            self.interrupt(JobTimeout)
        start = time.monotonic()
        while time.monotonic() < start + _PAUSE:
            with self._lock:  # so that nobody stops the processes any more when this returns
                if self._threads.close():
                    return True
            time.sleep(_LOOK)
        return False

    def release(self) -> None:
        """Let the threads that the run has left go on."""
        self._threads.release()

    @property
    def stuck(self) -> str:
        """What is said of a run that does not end although it is interrupted."""
        names = [] if self._is_attached else self._threads.names()
        return (
            f"its thread{f' {names[0]}' if names else ''} cannot be interrupted: it waits in C "
            "code, as in time.sleep() or a call of a library, or catches what is raised"
        )

    @contextlib.contextmanager
    def time_limit(self, seconds: float | None, job_id: str) -> Iterator[None]:
        """Raise JobTimeout in what runs within when it takes longer than ``seconds``."""
        if seconds is None:
            yield
            return
        over = threading.Event()
        watch = threading.Thread(target=self._enforce, args=(over, seconds), daemon=True)
        Context().run(watch.start)  # it is no part of the job
        try:
            yield
        finally:
            over.set()
            with self._lock:
                self._threads.spare()
        if self.timed_out:  # the task has swallowed the interruption
            raise JobTimeout(job_id=job_id)

    def _enforce(self, over: threading.Event, pause: float) -> None:
        while not over.wait(pause):
            with self._lock:
                if over.is_set():
                    return
                self.timed_out = True
                if not self._threads.interrupt(JobTimeout):
                    return  # the run has ended
                self._offspring.stop()
            pause = _PAUSE
