"""Output of threads and processes that outlive their job: the worker's own stderr."""

from __future__ import annotations

import contextlib
import sys
from typing import TextIO

__all__ = ["set_stream", "write"]

_stream: TextIO | None = None


def set_stream(stream: TextIO | None) -> None:
    """Set the stream to write to. None stands for the process's own stderr."""
    global _stream
    _stream = stream


def write(text: str) -> None:
    """Write to the worker's own stderr."""
    stream = sys.__stderr__ if _stream is None else _stream
    if stream is not None:
        # A worker without stderr has nowhere to report that.
        with contextlib.suppress(OSError, ValueError):
            stream.write(text)
            stream.flush()
