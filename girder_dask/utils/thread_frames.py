"""Frames of the threads of this process, taken without a deadlock of CPython."""

from __future__ import annotations

import gc
import os
import sys
import threading
from types import FrameType

__all__ = ["thread_frames"]

_lock = threading.RLock()


def thread_frames() -> dict[int, FrameType]:
    """Return the current frame of each thread, by the identifiers of the threads.

    ``sys._current_frames()`` holds a lock of the interpreter. A garbage collection within it runs
    Python callbacks, such as Dask's, which may pass the GIL to a thread that then waits for that
    lock with the GIL held: no thread of the process goes on (seen with CPython 3.11.7). So the
    collector pauses meanwhile.

    Examples
    --------
    >>> threading.get_ident() in thread_frames()
    True
    """
    with _lock:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()  # noqa: SLF001 - documented, and the only access
        finally:
            if was_enabled:
                gc.enable()


# A child would otherwise keep the lock, and the collector off, if another thread was here.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)
