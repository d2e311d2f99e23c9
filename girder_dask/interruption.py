"""How the code of a run is stopped in its thread: an exception at its next Python instruction.

The subprocesses that it waits for are ended too, or it would wait for them first.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

from girder_dask.errors import JobTimeout
from girder_dask.offspring import Offspring

__all__ = ["Interruption"]

# A task that swallows an interruption is interrupted again.
_PAUSE = 1.0


class Interruption:
    """The thread of a run, while it may be interrupted.

    Parameters
    ----------
    offspring
        The processes of the run.

    Attributes
    ----------
    timed_out
        Whether the time limit was reached.
    """

    def __init__(self, offspring: Offspring) -> None:
        self._offspring = offspring
        self._lock = threading.Lock()
        self._thread: int | None = None
        self.timed_out = False

    def attach(self) -> None:
        """Let the calling thread be interrupted from now on."""
        with self._lock:
            self._thread = threading.get_ident()

    def detach(self) -> None:
        """Let it be interrupted no more, and take back what has not happened yet."""
        with self._lock:
            if self._thread is not None:
                _raise_in(self._thread, None)
            self._thread = None

    def interrupt(self, exception: type[BaseException]) -> None:
        """Raise ``exception`` in the thread, from another one.

        Its subprocesses get SIGTERM, and SIGKILL when they are still there the next time.
        """
        with self._lock:
            if self._thread is not None:
                _raise_in(self._thread, exception)
                self._offspring.stop()

    @contextlib.contextmanager
    def time_limit(self, seconds: float | None, job_id: str) -> Iterator[None]:
        """Raise JobTimeout in what runs within when it takes longer than ``seconds``."""
        if seconds is None:
            yield
            return
        over = threading.Event()
        threading.Thread(target=self._enforce, args=(over, seconds), daemon=True).start()
        try:
            yield
        finally:
            over.set()
            with self._lock:
                if self._thread is not None:
                    _raise_in(self._thread, None)
        if self.timed_out:  # the task has swallowed the interruption
            raise JobTimeout(job_id=job_id)

    def _enforce(self, over: threading.Event, pause: float) -> None:
        while not over.wait(pause):
            with self._lock:
                if self._thread is not None and not over.is_set():
                    self.timed_out = True
                    _raise_in(self._thread, JobTimeout)
                    self._offspring.stop()
            pause = _PAUSE


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    """Have a thread raise an exception at its next Python instruction; None takes it back."""
    target = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), target)
