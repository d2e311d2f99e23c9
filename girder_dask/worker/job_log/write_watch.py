"""Threads whose writes to a log are watched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["WriteWatch"]


class WriteWatch(dict[int, bool]):
    """The watched threads, and whether each has written meanwhile.

    Examples
    --------
    >>> watch = WriteWatch()
    >>> with watch.watching() as has_written:
    ...     before = has_written()
    ...     watch.mark_written()
    ...     before, has_written()
    (False, True)
    """

    def mark_written(self) -> None:
        """Record that the calling thread has written, if it is watched."""
        thread = threading.get_ident()
        if thread in self:
            self[thread] = True

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[], bool]]:
        """Watch the calling thread, and yield a function that returns whether it has written."""
        thread = threading.get_ident()
        before = self.get(thread)
        self[thread] = False
        try:
            yield lambda: self[thread]
        finally:
            if before is None:
                del self[thread]
            else:
                self[thread] = before
