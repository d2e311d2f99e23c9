"""The buffer of a job's log: whole lines up to a limit, and back-pressure on writers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from girder_dask.worker.job_log.line_assembler import LineAssembler
from girder_dask.worker.job_log.log_limit import LogLimit
from girder_dask.worker.job_log.print_frames import is_in_event_loop

__all__ = ["LogBuffer"]

#: Most seconds that a thread waits for room if an event loop runs in it: that loop may be the
#: one that takes the text.
_MAX_LOOP_WAIT_S = 1.0

#: The number of the end of a long log, as a writer of lines.
_LOG_END = -2


class LogBuffer:
    """Text of a job that waits to be taken. The log holds ``lock`` around each call.

    Parameters
    ----------
    lock
        The lock of the log.
    capacity
        Characters that may wait.
    max_bytes
        Bytes that are kept, see :mod:`girder_dask.worker.job_log.log_limit`.
    is_busy
        Returns True if a writer is about to end its line, see
        :class:`~girder_dask.worker.job_log.line_assembler.LineAssembler`.
    on_held
        Called when a line is held: :meth:`LineAssembler.retry` must be called soon.

    Attributes
    ----------
    size
        Number of waiting characters.
    lines
        The waiting text, in order.
    """

    def __init__(
        self,
        lock: threading.RLock,
        capacity: int,
        max_bytes: float,
        is_busy: Callable[[int, float], bool],
        on_held: Callable[[], None],
    ) -> None:
        self._capacity = capacity
        self._on_held = on_held
        self._room = threading.Condition(lock)
        self._limit = LogLimit(max_bytes)
        self.lines = LineAssembler(is_busy)
        self.size = 0

    @property
    def is_full(self) -> bool:
        """Whether writers must wait. They need not once only the end of the log is kept."""
        return self.size >= self._capacity and not self._limit.is_reached

    def add(self, writer: int, text: str) -> None:
        """Add text, as much as the limit admits."""
        text = self._limit.admit(text)
        if text:
            self.size += len(text)
            if self.lines.add(writer, text):
                self._on_held()

    def take(self, max_characters: int | None) -> str:
        """Remove and return the first text, and wake writers that wait for room."""
        text = self.lines.take(max_characters)
        self.size -= len(text)
        if not self.is_full:
            self._room.notify_all()
        return text

    def wait_for_room(self, is_closed: Callable[[], bool]) -> None:
        """Wait until there is room or the log is closed."""
        deadline = time.monotonic() + _MAX_LOOP_WAIT_S if is_in_event_loop() else None
        while self.is_full and not is_closed():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return
            self._room.wait(remaining)

    def close(self) -> None:
        """Put all lines in order, and after them the end of a log that was too long."""
        self.lines.settle()
        if end := self._limit.end():
            self.size += len(end)
            self.lines.add(_LOG_END, end)
        self._room.notify_all()
