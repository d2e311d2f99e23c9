"""The standard streams of C code in this process."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["flush_c_streams", "line_buffer_stdout"]


def line_buffer_stdout() -> None:
    """Have C code write standard output line by line, although it is not a terminal."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        libc = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(libc, "stdout")
        libc.setvbuf(stream, None, 1, 0)  # _IOLBF


def flush_c_streams() -> None:
    """Flush all output streams of C code."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
