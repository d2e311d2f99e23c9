"""The log of one job: a bounded buffer that its threads and subprocesses fill.

Text is kept in the order in which it was written. What a job's subprocesses write comes
through one pipe, which is emptied before each write of the job itself, so that the lines of
a program that has ended stand before the lines that follow it. A line stays whole though
several threads write (see :mod:`girder_dask.worker.job_log.line_assembler`).
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from typing import Any

from girder_dask.utils.foreign_objects import exact_bytes, exact_text
from girder_dask.worker.job_log import orphan_output
from girder_dask.worker.job_log.job_local_state import JobLocalState
from girder_dask.worker.job_log.line_assembler import RETRY_DELAY_S, LineAssembler
from girder_dask.worker.job_log.log_limit import LogLimit
from girder_dask.worker.job_log.pipe import ForkOutput, JobPipe
from girder_dask.worker.job_log.print_frames import (
    call_position,
    caller_position,
    is_at_position,
    is_in_event_loop,
    is_in_write,
    write_code,
)
from girder_dask.worker.job_log.selector_thread import abandon_selector_thread, get_selector_thread
from girder_dask.worker.job_log.utf8_decoder import Utf8Decoder

__all__ = ["JobLog", "capturing", "current", "exact_output", "living_logs"]

#: The log of the job that the running code belongs to, or None outside of jobs.
current: ContextVar[JobLog | None] = ContextVar("girder_dask_log", default=None)

#: Most seconds that a thread waits for room if an event loop runs in it: the loop may be
#: the very one that takes the text away.
_MAX_LOOP_WAIT_S = 1.0

#: Seconds in which a subprocess is expected to end a line, which the pipe may have cut.
_PIPE_LINE_TIMEOUT_S = 0.5

#: The pipe and the end of a long log, as writers of lines. The numbers of threads are positive.
_PIPE, _LOG_END = -1, -2

_logs: weakref.WeakSet[JobLog] = weakref.WeakSet()


@contextlib.contextmanager
def capturing(log: JobLog) -> Iterator[JobLog]:
    """Make ``log`` the one that output in the calling thread's context goes to.

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
    """What a job has written and nobody has taken yet. For any number of threads.

    Parameters
    ----------
    on_text
        Called without arguments and outside of any job when there is text to take, once
        until the next :meth:`take`, from whichever thread wrote. It should do no more than
        wake the one that takes.
    capacity
        Characters that may wait. A writer that finds as many has to wait until some are
        taken, and subprocesses are held up by their pipe.
    most
        Bytes that are kept, see :mod:`girder_dask.worker.job_log.log_limit`. Nobody waits to write
        more.

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
        most: float = math.inf,
    ) -> None:
        #: The package of the job's function, if that is known.
        self.package: str | None = None
        #: What the job has set of the process's state for itself alone.
        self.local_state = JobLocalState()
        #: For which levels loggers are enabled in the job, as far as that was asked.
        self.enabled_levels: dict[tuple[Any, int], bool] = {}
        #: The threads that a log record is passed on in, and whether they have written meanwhile.
        self.watched_threads: dict[int, bool] = {}
        self._on_text = on_text
        self._capacity = capacity
        # Reentrant: the garbage collector may run a __del__ that prints while it is held.
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._lines = LineAssembler(self._is_busy)
        self._bound = LogLimit(most)
        self._size = 0
        self._characters = Utf8Decoder()
        self._pipe: JobPipe | None = None
        # By threads, where they were when they last wrote a part of a line.
        self._places: dict[int, tuple[int, int]] = {}
        self._last_call: tuple[int, ...] = ()
        self._same_call = False
        self._announced = False
        self._timer_set = False
        self._closed = False
        self._child_output: ForkOutput | None = None  # in a forked child
        _logs.add(self)

    # -- writing ---------------------------------------------------------------------------

    def write(self, text: str | bytes | bytearray | memoryview, source: str = "") -> int:
        """Add text. Waits while the buffer is full; after :meth:`close` it goes to stderr.

        Parameters
        ----------
        text
            Text, or bytes in UTF-8. A character may be split over several writes of bytes.
        source
            A name for the stream that the bytes come from.

        Returns
        -------
        int
            The number of characters, or of bytes, that were given.

        Raises
        ------
        TypeError
            If it is neither, as the ``write`` of every file does.
        """
        if type(text) is not str:
            text = exact_output(text)
        with self._lock:
            if self.watched_threads:
                self.mark_written()
            if self._child_output is not None:
                self._child_output.write(text)
                return len(text)
            if self._size >= self._capacity or self._pipe is not None:
                self._prepare()
            plain = isinstance(text, str) and not self._characters.pending
            decoded = str(text) if plain else self._to_text(source, text)
            if not self._closed:
                writer = threading.get_ident()
                if decoded[-1:] != "\n":
                    self._places[writer] = caller_position()
                elif self._places:
                    self._places.pop(writer, None)
                self._add(writer, decoded)
                decoded = ""
            announce = not self._announced and self._must_announce()
        if decoded:
            orphan_output.write(decoded)
        if announce:
            self._announce()
        return len(text)

    def mark_written(self) -> None:
        """Note that the calling thread has written, if it is watched."""
        thread = threading.get_ident()
        if thread in self.watched_threads:
            self.watched_threads[thread] = True

    def flush(self) -> None:
        """Do nothing: what is written can be taken at once. A forked child sends its line."""
        with self._lock:
            if self._child_output is not None:
                self._child_output.flush()

    def _prepare(self) -> None:
        """Wait for room, and take in what subprocesses wrote before."""
        if self._is_full():
            self._wait_for_room()
        if self._pipe is not None and self._pipe.active and not self._closed:
            call = call_position()
            self._same_call, self._last_call = call == self._last_call, call
            self._drain(self._pipe)
            self._same_call = False

    def _is_full(self) -> bool:
        return self._size >= self._capacity and not self._bound.reached

    def _wait_for_room(self) -> None:
        deadline = time.monotonic() + _MAX_LOOP_WAIT_S if is_in_event_loop() else None
        while self._is_full() and not self._closed:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return
            self._room.wait(remaining)

    def _to_text(self, source: str, text: str | bytes) -> str:
        # Two threads may write to one stream, each its own characters.
        key = (source, threading.get_ident())
        if isinstance(text, str):
            return self._characters.end(key) + text
        return self._characters.decode(key, text)

    def _add(self, writer: int, text: str) -> None:
        text = self._bound.admit(text)
        if text:
            self._size += len(text)
            if self._lines.add(writer, text):
                self._set_timer()

    def _is_busy(self, writer: int, since: float) -> bool:
        if writer == threading.get_ident():
            # It is about to write, and takes in what came before: before this part of a
            # line, if it belongs to another call of print than the last part.
            return self._same_call
        if writer != _PIPE:
            return is_in_write(writer) or is_at_position(writer, self._places.get(writer))
        running = self._pipe is not None and self._pipe.has_children()
        return running and time.monotonic() - since < _PIPE_LINE_TIMEOUT_S

    def _set_timer(self) -> None:
        if not self._timer_set:
            self._timer_set = True
            get_selector_thread().call_later(RETRY_DELAY_S, self._on_timer)

    def _on_timer(self) -> None:
        with self._lock:
            self._timer_set = False
            self._lines.retry()
            if self._lines.holding:
                self._set_timer()
            announce = self._must_announce()
        if announce:
            self._announce()

    # -- taking ----------------------------------------------------------------------------

    def take(self, limit: int | None = None) -> str:
        """Remove and return the text that waits, first in, first out.

        Parameters
        ----------
        limit
            The most characters to return. Where that leaves some, ``on_text`` is called
            again, from here.

        Returns
        -------
        str
            Text that can be encoded in UTF-8: lone surrogates become ``\\udcxx``.
        """
        with self._lock:
            if self._pipe is not None and not self._closed and not self._is_full():
                self._drain(self._pipe)
            self._lines.retry()
            text = self._lines.take(limit)
            self._size -= len(text)
            self._announced = False
            announce = self._must_announce()
            if not self._is_full():
                self._room.notify_all()
                if self._pipe is not None:
                    self._pipe.resume()
        if announce:
            self._announce()
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return text

    def _must_announce(self) -> bool:
        if self._announced or not self._lines.pieces:
            return False
        self._announced = True
        return True

    def _announce(self) -> None:
        if self._on_text is None:
            return
        try:
            # Not in the job's context, which would follow whatever the call sets going.
            Context().run(self._on_text)
        except Exception:  # noqa: BLE001 - whatever it is, it is not the fault of the job's code
            orphan_output.write(traceback.format_exc())

    # -- subprocesses ----------------------------------------------------------------------

    def pipe(self) -> int:
        """Return the descriptor that subprocesses of this job write to.

        There is one pipe for a job, made when it is first needed and closed by
        :meth:`close`. The descriptor is not inheritable. To be called by the thread that
        starts a subprocess, before it does: what it has written stands before the output.

        Raises
        ------
        ValueError
            If the log is closed.
        """
        with self._lock:
            if self._pipe is None and not self._closed and self._child_output is None:
                self._pipe = JobPipe(self._on_readable)
            self._lines.leave(threading.get_ident())
            if self._pipe is None or self._pipe.write_fd is None:
                raise ValueError("The log of this job is closed.")
            self._pipe.active = True
            return self._pipe.write_fd

    def pipe_for_fork(self) -> int:
        """Return :meth:`pipe`, for a child that nobody can ask whether it is still there."""
        with self._lock:
            fd = self.pipe()
            if self._pipe is not None:
                self._pipe.expect_forks()
            return fd

    @contextlib.contextmanager
    def lend_pipe(self, process: Any) -> Iterator[int | None]:
        """Give a duplicate of :meth:`pipe` to start ``process`` with, a ``Popen``.

        It stays valid should the log be closed meanwhile, and is None if it is closed already.
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

    def _drain(self, pipe: JobPipe) -> None:
        for text in pipe.read_all():
            self._add(_PIPE, text)

    def _on_readable(self) -> None:
        leftover = None
        with self._lock:
            pipe = self._pipe
            if pipe is None:
                return
            if self._closed:
                leftover = pipe.read()
            else:
                if not self._is_full():
                    self._drain(pipe)
                if self._is_full():
                    pipe.pause()
            announce = self._must_announce()
        if leftover:
            orphan_output.write(leftover)
        if announce:
            self._announce()

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        """Take in what is there, and no more.

        What waits can still be taken. What is written from now on, by threads and processes
        that outlive their job, goes to the worker's own stderr.
        """
        with self._lock:
            if self._child_output is not None:
                self._child_output.flush()
                return
            if self._closed:
                return
            if self._pipe is not None:
                # Comes to the end of the pipe, unless a process outlives the job.
                self._pipe.close_write()
                self._drain(self._pipe)
                self._pipe.resume()
            self._add(threading.get_ident(), self._characters.end_all())
            self._lines.settle()
            if end := self._bound.end():
                self._size += len(end)
                self._lines.add(_LOG_END, end)
            self._closed = True
            self._room.notify_all()
            announce = self._must_announce()
        if announce:
            self._announce()

    def become_forked(self, *, keep_pipe: bool) -> None:
        """Write straight to the pipe from now on: this is a copy in a forked child."""
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._on_text = None
        if self._pipe is not None:
            self._pipe.become_forked(keep=keep_pipe)
        self._child_output = ForkOutput(self._pipe.write_fd if self._pipe is not None else None)


write_code.update((JobLog.write.__code__, JobLog._prepare.__code__))  # noqa: SLF001


def exact_output(data: str | bytes | bytearray | memoryview) -> str | bytes:
    """Return text or bytes as they are, and of no subclass: others work with them later.

    Raises
    ------
    TypeError
        If it is neither, as the ``write`` of a file does.
    """
    if isinstance(data, str):
        return exact_text(data)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"write() argument must be str or bytes, not {type(data).__name__}")
    # Not of a memoryview, whose bytes may lie apart.
    return data.tobytes() if type(data) is memoryview else exact_bytes(data)


def living_logs() -> list[JobLog]:
    """Return all logs that somebody has."""
    while True:
        try:
            return list(_logs)
        except RuntimeError:  # another thread has made one meanwhile
            continue


def after_fork_in_child() -> None:
    """Make the logs of the parent fit for a forked child.

    The current job's log writes to its pipe, the others are let go of.
    """
    abandon_selector_thread()
    log = current.get()
    for other in living_logs():
        other.become_forked(keep_pipe=other is log)
