"""Replacements of ``sys.stdout`` and ``sys.stderr`` that route each write to the writer's job.

Output inside a job goes to the log of that job, other output to the original stream. The context
of the writer decides at each write, so one object serves all jobs, and a logging handler that one
job has bound to it serves the next.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, TextIO

from girder_dask.worker.interruption.thread_interrupter import (
    pending_interrupts,
    raise_pending_interrupt,
)
from girder_dask.worker.job_log.log import current
from girder_dask.worker.job_log.print_frames import write_code

__all__ = ["RoutingBuffer", "RoutingStream"]


class _RoutingFile(io.IOBase):
    """Base of both kinds of stream."""

    original: TextIO

    def flush(self) -> None:
        """Flush the original stream outside of jobs. In jobs, only forks buffer unended lines."""
        log = current.get()
        if log is not None:
            log.flush()
        elif not self.original.closed:
            self.original.flush()

    def close(self) -> None:
        """Flush. The stream belongs to the worker and stays open."""
        self.flush()

    @property
    def closed(self) -> bool:
        """Whether the original stream is closed. Never inside a job."""
        return current.get() is None and self.original.closed

    def fileno(self) -> int:
        """Return the descriptor of the original, which belongs to the worker, not to the job."""
        return self.original.fileno()

    def isatty(self) -> bool:
        """Return False inside a job."""
        return current.get() is None and self.original.isatty()

    def readable(self) -> bool:
        """Return False."""
        return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return False."""
        return False


class RoutingBuffer(_RoutingFile, io.BufferedIOBase):
    """The ``buffer`` of a :class:`RoutingStream`, for bytes."""

    def __init__(self, original: TextIO, name: str) -> None:
        self.original = original
        self._name = name

    def write(self, data: Any) -> int:
        """Write bytes in UTF-8 to the current job's log, or to the original stream."""
        log = current.get()
        if log is not None:
            return log.write(bytes(data), self._name)
        buffer = getattr(self.original, "buffer", None)
        if buffer is not None:
            return int(buffer.write(data))
        self.original.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    @property
    def name(self) -> Any:
        """The name of the original's buffer."""
        return getattr(getattr(self.original, "buffer", self.original), "name", self._name)


class RoutingStream(_RoutingFile, io.TextIOBase):
    """A text stream that writes to the current job's log, or to ``original`` outside of jobs.

    It accepts bytes as well, because programs that relay the output of others write them.
    Closing it does nothing, because all jobs share it. ``fileno`` is the original's: output
    to the descriptor goes to the worker's own log.
    """

    def __init__(self, original: TextIO, name: str) -> None:
        self.original = original
        self._name = name
        self._buffer = RoutingBuffer(original, name)

    def write(self, text: str | bytes) -> int:
        """Write text, or bytes in UTF-8."""
        log = current.get()
        if log is not None:
            count = log.write(text, self._name)
            if pending_interrupts:
                raise_pending_interrupt(text)
            return count
        if isinstance(text, (bytes, bytearray, memoryview)):
            return self._buffer.write(text)
        return self.original.write(text)

    def writelines(self, lines: Iterable[str | bytes]) -> None:  # type: ignore[override]
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def detach(self) -> Any:
        """Return the buffer without detaching it."""
        return self._buffer

    def reconfigure(self, **options: Any) -> None:
        """Reconfigure the original outside of jobs. Do nothing in a job, where all is UTF-8."""
        reconfigure = getattr(self.original, "reconfigure", None)
        if current.get() is None and reconfigure is not None:
            reconfigure(**options)

    @property
    def buffer(self) -> RoutingBuffer:
        """The binary stream to the same destination."""
        return self._buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding, UTF-8 inside a job."""
        if current.get() is not None:
            return "utf-8"
        return getattr(self.original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """The error handler for characters that cannot be encoded."""
        if current.get() is not None:
            return "backslashreplace"
        return getattr(self.original, "errors", None)

    @property
    def newlines(self) -> Any:  # type: ignore[override]
        """The newlines of the original."""
        return getattr(self.original, "newlines", None)

    @property
    def name(self) -> Any:
        """The name of the original, such as ``<stdout>``."""
        return getattr(self.original, "name", f"<{self._name}>")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.original!r}>"


write_code.add(RoutingStream.write.__code__)
