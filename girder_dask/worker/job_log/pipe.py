"""The pipe between the subprocesses of a job and its log."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from girder_dask.worker.job_log.selector_thread import get_selector_thread
from girder_dask.worker.job_log.utf8_decoder import Utf8Decoder

__all__ = ["JobPipe"]

_CHUNK_BYTES = 64 * 1024
#: Most bytes to read at once, more than a pipe holds by default.
_MAX_READ_BYTES = 1024 * 1024

#: Seconds within which a subprocess is expected to end a line that the pipe may have split.
_LINE_TIMEOUT_S = 0.5


class JobPipe:
    """A pipe that the selector thread watches. Not thread-safe: the log holds a lock around calls.

    Parameters
    ----------
    on_readable
        Called in the selector thread when there is something to read.

    Attributes
    ----------
    write_fd
        The descriptor that subprocesses write to, None once this process has closed it. Not
        inheritable.
    active
        Whether the pipe may hold output that must precede what the job writes now. False once
        all subprocesses have been waited for and read: a system call for each line would cost
        more than everything else. Output of processes that they left behind is read by the
        selector thread.
    """

    def __init__(self, on_readable: Callable[[], None]) -> None:
        self._on_readable = on_readable
        self._decoder = Utf8Decoder()
        self._children: weakref.WeakSet[Any] = weakref.WeakSet()
        read_fd, write_fd = os.pipe()
        self._read_fd: int | None = read_fd
        self.write_fd: int | None = write_fd
        status = os.fstat(write_fd)
        self._identity = status.st_dev, status.st_ino
        os.set_blocking(read_fd, False)
        self.active = True
        self._has_forks = False
        self._is_watched = False
        self.resume()

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the end that subprocesses write to, None once it is closed here."""
        return None if self.write_fd is None else self._identity

    @property
    def ended(self) -> bool:
        """Whether all writers have closed the pipe, and everything has been read."""
        return self._read_fd is None

    def read(self) -> str | None:
        """Return text from the pipe without waiting, None if there is none.

        Close the pipe at its end, when all writers have closed it.
        """
        if self._read_fd is None:
            return None
        try:
            data = os.read(self._read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return None
        if data:
            return self._decoder.decode(None, data)
        self.pause()
        os.close(self._read_fd)
        self._read_fd = None
        return self._decoder.end(None)

    def read_all(self) -> Iterator[str]:
        """Yield the text written before this call, without waiting."""
        is_running = self._has_forks or bool(self.children())
        for _ in range(_MAX_READ_BYTES // _CHUNK_BYTES):
            text = self.read()
            if text is None:
                self.active = is_running
                return
            yield text

    def pause(self) -> None:
        """Stop watching the pipe, so that writers wait when it is full."""
        if self._is_watched and self._read_fd is not None:
            self._is_watched = False
            get_selector_thread().unwatch(self._read_fd)

    def resume(self) -> None:
        """Watch the pipe again."""
        if not self._is_watched and self._read_fd is not None:
            self._is_watched = True
            get_selector_thread().watch(self._read_fd, self._on_readable)

    def close_write(self) -> None:
        """Close this process's end, so that the pipe ends with the last subprocess."""
        if self.write_fd is not None:
            os.close(self.write_fd)
            self.write_fd = None

    def add_child(self, process: Any) -> None:
        """Record a ``Popen`` that writes here."""
        self._children.add(process)

    def expect_forks(self) -> None:
        """Expect children of ``os.fork``, which have no ``Popen``."""
        self._has_forks = True

    def children(self) -> list[Any]:
        """Return the children that have not been waited for."""
        for process in list(self._children):
            if getattr(process, "returncode", None) is not None:
                self._children.discard(process)
        return list(self._children)

    def is_mid_line(self, since: float) -> bool:
        """Return True if a child is about to end a line that it began at ``since``."""
        return bool(self.children()) and time.monotonic() - since < _LINE_TIMEOUT_S

    def become_forked(self, *, keep: bool) -> None:
        """Close the ends that a forked child does not need: both, or one if it writes here."""
        if self._read_fd is not None:
            os.close(self._read_fd)
            self._read_fd = None
        if not keep:
            self.close_write()
