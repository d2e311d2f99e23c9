"""The output of a forked child, on its way to the log of its job."""

from __future__ import annotations

import contextlib

from girder_dask.worker.job_log.blocking_write import write_all

__all__ = ["ForkOutput"]

#: The longest unfinished line that a forked child keeps to itself (PIPE_BUF on Linux).
_MAX_LINE_BYTES = 4096


class ForkOutput:
    """Writer of whole lines to a pipe that has other writers and keeps small writes whole.

    Parameters
    ----------
    fd
        The pipe. None if the job has ended: its output goes to the process's stderr.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = 2 if fd is None else fd
        self._line = b""

    def write(self, text: str | bytes) -> None:
        """Write text. Its last line is kept until it is ended, flushed or long."""
        if isinstance(text, str):
            text = text.encode("utf-8", "backslashreplace")
        self._line += text
        if b"\n" in text or len(self._line) > _MAX_LINE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the line that is kept."""
        data, self._line = self._line, b""
        with contextlib.suppress(OSError):  # the pipe has no reader left
            write_all(self._fd, data)
