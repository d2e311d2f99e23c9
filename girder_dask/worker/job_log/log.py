"""The log of one job, which its threads and subprocesses fill.

Text is kept in the order in which it was written. The output of a job's subprocesses comes
through one pipe, which is drained before each write of the job itself, so that the lines of
a program that has ended precede the lines that follow it. A line stays whole even if
several threads write (see :mod:`girder_dask.worker.job_log.line_assembler`).
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from girder_dask.utils.foreign_objects import exact_output
from girder_dask.worker.job_log import orphan_output
from girder_dask.worker.job_log.buffer import LogBuffer
from girder_dask.worker.job_log.fork_output import ForkOutput
from girder_dask.worker.job_log.job_local_state import JobLocalState
from girder_dask.worker.job_log.line_assembler import RETRY_DELAY_S
from girder_dask.worker.job_log.pipe import JobPipe
from girder_dask.worker.job_log.print_frames import (
    call_position,
    caller_position,
    is_at_position,
    is_in_write,
    write_code,
)
from girder_dask.worker.job_log.selector_thread import abandon_selector_thread, get_selector_thread
from girder_dask.worker.job_log.text_notifier import TextNotifier
from girder_dask.worker.job_log.utf8_decoder import Utf8Decoder, encodable
from girder_dask.worker.job_log.write_watch import WriteWatch

__all__ = [
    "JobLog",
    "after_fork_in_child",
    "capturing",
    "current",
    "living_logs",
]

#: The log of the job that the running code belongs to, or None outside of jobs.
current: ContextVar[JobLog | None] = ContextVar("girder_dask_log", default=None)

#: The number of the pipe as a writer of lines. Those of threads are positive.
_PIPE = -1

_logs: weakref.WeakSet[JobLog] = weakref.WeakSet()


@contextlib.contextmanager
def capturing(log: JobLog) -> Iterator[JobLog]:
    """Send output in the calling thread's context to ``log``.

    >>> log = JobLog()
    >>> with capturing(log):
    ...     assert current.get() is log
    """
    token = current.set(log)
    try:
        yield log
    finally:
        current.reset(token)


class JobLog:
    """The output of a job, until it is taken. Any thread may use it.

    Parameters
    ----------
    on_text
        Called without arguments and outside of any job when there is text to take, once
        until the next :meth:`take`, from the thread that wrote. It should do no more than
        wake the thread that takes.
    capacity
        Characters that may wait. A writer that finds the log full waits until some are taken.
        Subprocesses wait at their pipe.
    max_bytes
        Bytes that are kept, see :mod:`girder_dask.worker.job_log.log_limit`. Once the limit is
        reached, writers do not wait.

    Attributes
    ----------
    package
        The package of the job's function, if that is known.
    local_state
        State of the process that the job has set for itself alone.
    enabled_levels
        Cached results of ``Logger.isEnabledFor`` in the job.
    watch
        The threads in which a log record is passed to handlers.

    Examples
    --------
    >>> log = JobLog()
    >>> log.write("Counted ")
    8
    >>> log.write("7 coins\\n".encode())
    8
    >>> log.take()
    'Counted 7 coins\\n'
    >>> log.close()
    """

    def __init__(
        self,
        on_text: Callable[[], None] | None = None,
        capacity: int = 4 * 1024 * 1024,
        max_bytes: float = math.inf,
    ) -> None:
        self.package: str | None = None
        self.local_state = JobLocalState()
        self.enabled_levels: dict[tuple[Any, int], bool] = {}
        self.watch = WriteWatch()
        self._notifier = TextNotifier(on_text)
        self._capacity = capacity
        # Reentrant: the garbage collector may run a __del__ that prints while it is held.
        self._lock = threading.RLock()
        self._buffer = LogBuffer(self._lock, capacity, max_bytes, self._is_busy, self._set_timer)
        self._decoder = Utf8Decoder()
        self._pipe: JobPipe | None = None
        # By thread, the position at which it last wrote part of a line.
        self._positions: dict[int, tuple[int, int]] = {}
        self._last_call: tuple[int, ...] = ()
        self._is_same_call = False
        self._has_timer = False
        self._is_closed = False
        self._fork_output: ForkOutput | None = None  # in a forked child
        _logs.add(self)

    # -- writing ---------------------------------------------------------------------------

    def write(self, text: str | bytes | bytearray | memoryview, source: str = "") -> int:
        """Add text. Wait while the buffer is full. After :meth:`close`, text goes to stderr.

        Parameters
        ----------
        text
            Text, or bytes in UTF-8. A character may be split over several writes of bytes.
        source
            A name for the stream that the bytes come from.

        Returns
        -------
        int
            The number of characters or bytes in ``text``.

        Raises
        ------
        TypeError
            If ``text`` is neither, as with any file.
        """
        if type(text) is not str:
            text = exact_output(text)
        with self._lock:
            if self.watch:
                self.watch.mark_written()
            if self._fork_output is not None:
                self._fork_output.write(text)
                return len(text)
            if self._buffer.size >= self._capacity or self._pipe is not None:
                self._prepare()
            is_plain = isinstance(text, str) and not self._decoder.pending
            writer = threading.get_ident()
            # Two threads may write to one stream, each its own characters.
            decoded = str(text) if is_plain else self._decoder.decode((source, writer), text)
            if not self._is_closed:
                if decoded[-1:] != "\n":
                    self._positions[writer] = caller_position()
                elif self._positions:
                    self._positions.pop(writer, None)
                self._buffer.add(writer, decoded)
                decoded = ""
            must_notify = not self._notifier.is_claimed and self._claim_notification()
        if decoded:
            orphan_output.write(decoded)
        if must_notify:
            self._notifier.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: written text can be taken at once. A forked child sends its unended line."""
        with self._lock:
            if self._fork_output is not None:
                self._fork_output.flush()

    def _prepare(self) -> None:
        """Wait for room, and read what subprocesses have written before."""
        if self._buffer.is_full:
            self._buffer.wait_for_room(lambda: self._is_closed)
        if self._pipe is not None and self._pipe.active and not self._is_closed:
            call = call_position()
            self._is_same_call, self._last_call = call == self._last_call, call
            self._drain(self._pipe)
            self._is_same_call = False

    def _is_busy(self, writer: int, since: float) -> bool:
        if writer == threading.get_ident():
            # It is about to write, and has read earlier output of subprocesses. That goes before
            # this part of a line, if another call of print wrote the last part.
            return self._is_same_call
        if writer != _PIPE:
            return is_in_write(writer) or is_at_position(writer, self._positions.get(writer))
        return self._pipe is not None and self._pipe.is_mid_line(since)

    def _set_timer(self) -> None:
        if not self._has_timer:
            self._has_timer = True
            get_selector_thread().call_later(RETRY_DELAY_S, self._on_timer)

    def _on_timer(self) -> None:
        with self._lock:
            self._has_timer = False
            self._buffer.lines.retry()
            if self._buffer.lines.is_holding:
                self._set_timer()
            must_notify = self._claim_notification()
        if must_notify:
            self._notifier.notify()

    # -- taking ----------------------------------------------------------------------------

    def take(self, max_characters: int | None = None) -> str:
        """Remove and return waiting text, first in, first out, encodable in UTF-8.

        Parameters
        ----------
        max_characters
            The most characters to return. If some remain, ``on_text`` is called again, from
            here.
        """
        with self._lock:
            if self._pipe is not None and not self._is_closed and not self._buffer.is_full:
                self._drain(self._pipe)
            self._buffer.lines.retry()
            text = self._buffer.take(max_characters)
            self._notifier.is_claimed = False
            must_notify = self._claim_notification()
            if self._pipe is not None and not self._buffer.is_full:
                self._pipe.resume()
        if must_notify:
            self._notifier.notify()
        return encodable(text)

    def _claim_notification(self) -> bool:
        return self._notifier.claim(self._buffer.lines.pieces)

    # -- subprocesses ----------------------------------------------------------------------

    def pipe(self, *, for_fork: bool = False) -> int:
        """Return the descriptor that subprocesses of this job write to.

        A job has one pipe, created on first use and closed by :meth:`close`. The descriptor is
        not inheritable. The thread that starts a subprocess must call this first, so that its
        own text precedes the output. ``for_fork`` is for a child without a ``Popen``, which
        cannot be asked whether it has ended.

        Raises
        ------
        ValueError
            If the log is closed.
        """
        with self._lock:
            if self._pipe is None and not self._is_closed and self._fork_output is None:
                self._pipe = JobPipe(self._on_readable)
            self._buffer.lines.leave(threading.get_ident())
            if self._pipe is None or self._pipe.write_fd is None:
                raise ValueError("The log of this job is closed.")
            self._pipe.active = True
            if for_fork:
                self._pipe.expect_forks()
            return self._pipe.write_fd

    @contextlib.contextmanager
    def lend_pipe(self, process: Any) -> Iterator[int | None]:
        """Yield a duplicate of :meth:`pipe` with which to start ``process``, a ``Popen``.

        It stays valid if the log is closed meanwhile, and is None if the log is closed already.
        """
        fd: int | None = None
        with self._lock, contextlib.suppress(ValueError):
            fd = os.dup(self.pipe())
            if self._pipe is not None:
                self._pipe.add_child(process)
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)

    def children(self) -> list[Any]:
        """Return the ``Popen`` objects that write to the pipe and have not been waited for."""
        with self._lock:
            return [] if self._pipe is None else self._pipe.children()

    def pipe_identity(self) -> tuple[int, int] | None:
        """Return device and inode of the pipe that subprocesses write to, None without a pipe."""
        with self._lock:
            return None if self._pipe is None else self._pipe.identity

    def _drain(self, pipe: JobPipe) -> None:
        for text in pipe.read_all():
            self._buffer.add(_PIPE, text)

    def _on_readable(self) -> None:
        leftover = None
        with self._lock:
            pipe = self._pipe
            if pipe is None:
                return
            if self._is_closed:
                leftover = pipe.read()
            else:
                if not self._buffer.is_full:
                    self._drain(pipe)
                if self._buffer.is_full:
                    pipe.pause()
            must_notify = self._claim_notification()
        if leftover:
            orphan_output.write(leftover)
        if must_notify:
            self._notifier.notify()

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        """Read what has been written so far, and accept nothing further.

        Waiting text can still be taken. Later output, of threads and processes that outlive
        their job, goes to the worker's own stderr.
        """
        with self._lock:
            if self._fork_output is not None:
                self._fork_output.flush()
                return
            if self._is_closed:
                return
            if self._pipe is not None:
                # Reaches the end of the pipe, unless a process outlives the job.
                self._pipe.close_write()
                self._drain(self._pipe)
                self._pipe.resume()
            self._buffer.add(threading.get_ident(), self._decoder.end_all())
            self._is_closed = True
            self._buffer.close()
            must_notify = self._claim_notification()
        if must_notify:
            self._notifier.notify()

    def become_forked(self, *, keep_pipe: bool) -> None:
        """Write straight to the pipe from now on, in the copy of a forked child."""
        self._lock = threading.RLock()
        self._buffer = LogBuffer(
            self._lock, self._capacity, math.inf, self._is_busy, self._set_timer
        )
        self._notifier = TextNotifier(None)
        if self._pipe is not None:
            self._pipe.become_forked(keep=keep_pipe)
        self._fork_output = ForkOutput(self._pipe.write_fd if self._pipe is not None else None)


write_code.update((JobLog.write.__code__, JobLog._prepare.__code__))  # noqa: SLF001


def living_logs() -> list[JobLog]:
    """Return all logs that are referenced somewhere."""
    while True:
        try:
            return list(_logs)
        except RuntimeError:  # another thread has created one meanwhile
            continue


def after_fork_in_child() -> None:
    """Adapt the logs of the parent to a forked child.

    The current job's log writes to its pipe, the others are detached from theirs.
    """
    abandon_selector_thread()
    log = current.get()
    for other in living_logs():
        other.become_forked(keep_pipe=other is log)
