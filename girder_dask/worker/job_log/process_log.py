"""The log of a job that has a process of its own: whatever it writes, lands there."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator
from typing import Any

from girder_dask.worker.job_log.blocking_write import write_all
from girder_dask.worker.job_log.log import JobLog, exact_output
from girder_dask.worker.job_log.print_frames import is_in_write
from girder_dask.worker.job_log.selector_thread import get_selector_thread

__all__ = ["ProcessLog", "flush_c_streams", "line_buffer_stdout"]

#: Seconds within which a line is expected to be ended, and the longest that is kept so long.
_LINE_DELAY_S = 0.02
_MAX_LINE_BYTES = 4096

#: Seconds that a thread which lost its turn within ``print`` is waited for.
_MAX_TURN_S = 1.0


class ProcessLog(JobLog):
    """Writes to descriptors 1 and 2, which lead to the job's log, in whole lines.

    A line that is begun is kept for a moment, since ``print`` writes a line and its end
    in two steps, and threads and subprocesses write to the same pipe.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun: dict[int, tuple[int, bytes, float]] = {}
        self._due = False

    def write(self, text: str | bytes | bytearray | memoryview, source: str = "") -> int:
        """Write text, or bytes in UTF-8, to the descriptor of ``source``."""
        if type(text) is not str:
            text = exact_output(text)
        data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        fd, thread = 2 if source == "stderr" else 1, threading.get_ident()
        with self._lock:
            self.mark_written()
            before, begun, _ = self._begun.pop(thread, (fd, b"", 0.0))
            if before != fd:
                _send(before, begun)
                begun = b""
            data = begun + data
            end = len(data) if len(data) > _MAX_LINE_BYTES else data.rfind(b"\n") + 1
            _send(fd, data[:end])
            if data[end:]:
                self._begun[thread] = fd, data[end:], time.monotonic()
                self._expect_ends()
        return len(text)

    def _expect_ends(self) -> None:
        if not self._due:
            self._due = True
            get_selector_thread().call_later(_LINE_DELAY_S, self._write_late)

    def _write_late(self) -> None:
        """Write lines whose end has not come for a while."""
        with self._lock:
            self._due = False
            now = time.monotonic()
            for thread, (fd, data, since) in list(self._begun.items()):
                if now - since < (_MAX_TURN_S if is_in_write(thread) else _LINE_DELAY_S / 2):
                    continue
                del self._begun[thread]
                _send(fd, data)
            if self._begun:
                self._expect_ends()

    def flush(self) -> None:
        """Write the line that this thread has begun."""
        with self._lock:
            fd, data, _ = self._begun.pop(threading.get_ident(), (1, b"", 0.0))
            _send(fd, data)

    def flush_all(self) -> None:
        """Write all lines that are begun."""
        with self._lock:
            begun, self._begun = self._begun, {}
            for fd, data, _ in begun.values():
                _send(fd, data)

    def close(self) -> None:
        """Write what is kept."""
        self.flush_all()

    def pipe(self) -> int:
        """Raise ValueError: subprocesses inherit the descriptors, and need no other."""
        self.flush()
        raise ValueError("This process writes to the job's log anyway.")

    @contextlib.contextmanager
    def lend_pipe(self, process: Any) -> Iterator[int | None]:  # noqa: ARG002
        """Yield None, so that ``process`` inherits the descriptors."""
        self.flush()
        yield None

    def become_forked(self, *, keep_pipe: bool) -> None:  # noqa: ARG002
        """Begin anew in a forked child."""
        self._lock = threading.RLock()
        self._begun, self._due = {}, False


def _send(fd: int, data: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody is left to read it
        write_all(fd, data)


def line_buffer_stdout() -> None:
    """Have C's standard output written line by line, though it is no terminal."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(libc, "stdout")
        libc.setvbuf(stream, None, 1, 0)  # _IOLBF


def flush_c_streams() -> None:
    """Write what C code has buffered."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
