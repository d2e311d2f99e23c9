"""The log of a job in a process of its own, on the side of that process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from girder_dask.utils.foreign_objects import exact_output
from girder_dask.worker.job_log.blocking_write import write_all
from girder_dask.worker.job_log.log import JobLog
from girder_dask.worker.job_log.print_frames import is_in_write
from girder_dask.worker.job_log.selector_thread import get_selector_thread

__all__ = ["ProcessLog"]

#: Seconds that an unended line is kept, and the longest line that is kept.
_LINE_DELAY_S = 0.02
_MAX_LINE_BYTES = 4096

#: Most seconds that a line is kept while its thread is inside ``print``.
_MAX_TURN_S = 1.0


class ProcessLog(JobLog):
    """Writer of whole lines to descriptors 1 and 2, which lead to the job's log.

    The beginning of a line is kept for a moment, since ``print`` writes a line and its end
    in two steps, and threads and subprocesses write to the same pipe.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unended: dict[int, tuple[int, bytes, float]] = {}
        self._has_timer = False

    def write(self, text: str | bytes | bytearray | memoryview, source: str = "") -> int:
        """Write text, or bytes in UTF-8, to the descriptor of ``source``."""
        if type(text) is not str:
            text = exact_output(text)
        data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        fd, thread = 2 if source == "stderr" else 1, threading.get_ident()
        with self._lock:
            if self.watch:
                self.watch.mark_written()
            before, begun, _ = self._unended.pop(thread, (fd, b"", 0.0))
            if before != fd:
                _send(before, begun)
                begun = b""
            data = begun + data
            end = len(data) if len(data) > _MAX_LINE_BYTES else data.rfind(b"\n") + 1
            _send(fd, data[:end])
            if data[end:]:
                self._unended[thread] = fd, data[end:], time.monotonic()
                self._set_timer()
        return len(text)

    def _set_timer(self) -> None:
        if not self._has_timer:
            self._has_timer = True
            get_selector_thread().call_later(_LINE_DELAY_S, self._on_timer)

    def _on_timer(self) -> None:
        """Write lines that have not been ended for a while."""
        with self._lock:
            self._has_timer = False
            now = time.monotonic()
            for thread, (fd, data, since) in list(self._unended.items()):
                if now - since < (_MAX_TURN_S if is_in_write(thread) else _LINE_DELAY_S / 2):
                    continue
                del self._unended[thread]
                _send(fd, data)
            if self._unended:
                self._set_timer()

    def flush(self) -> None:
        """Write the unended line of the calling thread."""
        with self._lock:
            fd, data, _ = self._unended.pop(threading.get_ident(), (1, b"", 0.0))
            _send(fd, data)

    def flush_all(self) -> None:
        """Write all unended lines."""
        with self._lock:
            begun, self._unended = self._unended, {}
            for fd, data, _ in begun.values():
                _send(fd, data)

    def close(self) -> None:
        """Write all unended lines."""
        self.flush_all()

    def pipe(self, *, for_fork: bool = False) -> int:  # noqa: ARG002
        """Raise ValueError: subprocesses inherit the descriptors and need no pipe."""
        self.flush()
        raise ValueError("This process writes to the job's log anyway.")

    @contextlib.contextmanager
    def lend_pipe(self, process: Any) -> Iterator[int | None]:  # noqa: ARG002
        """Yield None, so that ``process`` inherits the descriptors."""
        self.flush()
        yield None

    def become_forked(self, *, keep_pipe: bool) -> None:  # noqa: ARG002
        """Start without unended lines, in the copy of a forked child."""
        self._lock = threading.RLock()
        self._unended, self._has_timer = {}, False


def _send(fd: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the pipe has no reader left
        write_all(fd, data)
