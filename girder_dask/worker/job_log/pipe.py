"""The pipe between the subprocesses of a job and its log."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from girder_dask.worker.job_log.blocking_write import write_all
from girder_dask.worker.job_log.selector_thread import get_selector_thread
from girder_dask.worker.job_log.utf8_decoder import Utf8Decoder

__all__ = ["ForkOutput", "JobPipe"]

_CHUNK_BYTES = 64 * 1024
#: Most bytes that are read at once: more than a pipe holds by default.
_MAX_READ_BYTES = 1024 * 1024
#: The longest unfinished line that a forked child keeps to itself (PIPE_BUF on Linux).
_MAX_LINE_BYTES = 4096


class JobPipe:
    """A pipe that the selector thread watches. Not thread safe: the log holds a lock around each
    call.

    Parameters
    ----------
    on_readable
        Called in the selector thread when there is something to read.

    Attributes
    ----------
    write_fd
        What subprocesses write to, None once this process has closed it. Not inheritable.
    active
        Whether something may be there that has to stand before what is written now. Not so when all
        subprocesses have been waited for and read: a system call for each line would cost more than
        all the rest. Processes that these left behind are heard by the selector thread.
    """

    def __init__(self, on_readable: Callable[[], None]) -> None:
        self._on_readable = on_readable
        self._characters = Utf8Decoder()
        self._children: weakref.WeakSet[Any] = weakref.WeakSet()
        read_fd, write_fd = os.pipe()
        self._read_fd: int | None = read_fd
        self.write_fd: int | None = write_fd
        os.set_blocking(read_fd, False)
        self.active = True
        self._forks = False
        self._watched = False
        self.resume()

    @property
    def ended(self) -> bool:
        """Whether nobody can write any more, and everything has been read."""
        return self._read_fd is None

    def read(self) -> str | None:
        """Return what has been written, without waiting, or None if there is nothing.

        At the end, that is when all who could write have closed it, the pipe is closed.
        """
        if self._read_fd is None:
            return None
        try:
            data = os.read(self._read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return None
        if data:
            return self._characters.decode(None, data)
        self.pause()
        os.close(self._read_fd)
        self._read_fd = None
        return self._characters.end(None)

    def read_all(self) -> Iterator[str]:
        """Yield what has been written before this call, without waiting."""
        running = self._forks or self.has_children()
        for _ in range(_MAX_READ_BYTES // _CHUNK_BYTES):
            text = self.read()
            if text is None:
                self.active = running
                return
            yield text

    def pause(self) -> None:
        """Stop to watch, so that writers come to wait when the pipe is full."""
        if self._watched and self._read_fd is not None:
            self._watched = False
            get_selector_thread().unwatch(self._read_fd)

    def resume(self) -> None:
        """Watch again."""
        if not self._watched and self._read_fd is not None:
            self._watched = True
            get_selector_thread().watch(self._read_fd, self._on_readable)

    def close_write(self) -> None:
        """Close this process's end, so that the pipe ends with the last subprocess."""
        if self.write_fd is not None:
            os.close(self.write_fd)
            self.write_fd = None

    def add_child(self, process: Any) -> None:
        """Remember a ``Popen`` that writes here."""
        self._children.add(process)

    def expect_forks(self) -> None:
        """Be prepared for children that nobody can name."""
        self._forks = True

    def children(self) -> list[Any]:
        """Return those of them that run, as far as anybody has looked."""
        for process in list(self._children):
            if getattr(process, "returncode", None) is not None:
                self._children.discard(process)
        return list(self._children)

    def has_children(self) -> bool:
        """Say whether one of them runs."""
        return bool(self.children())

    def become_forked(self, *, keep: bool) -> None:
        """Close what a forked child does not need, which is all unless it shall write here."""
        if self._read_fd is not None:
            os.close(self._read_fd)
            self._read_fd = None
        if not keep:
            self.close_write()


class ForkOutput:
    """The way to the job's log from a forked child.

    It writes whole lines, because a pipe keeps small writes together, and others write to it.

    Parameters
    ----------
    fd
        The pipe, or None if the job is over: then it is the process's stderr.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = 2 if fd is None else fd
        self._line = b""

    def write(self, text: str | bytes) -> None:
        """Write text, its last line not before it is ended, flushed or long."""
        if isinstance(text, str):
            text = text.encode("utf-8", "backslashreplace")
        self._line += text
        if b"\n" in text or len(self._line) > _MAX_LINE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        data, self._line = self._line, b""
        with contextlib.suppress(OSError):  # nobody is left to read it
            write_all(self._fd, data)
