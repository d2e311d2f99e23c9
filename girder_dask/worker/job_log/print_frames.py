"""Frames of threads that print.

``print`` is C code that calls ``write`` once for each part of a line. The interpreter can switch
to another thread inside those calls, in the ``__str__`` of a printed object, and in code that
the garbage collector calls.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from types import CodeType, FrameType

from girder_dask.utils.thread_frames import thread_frames

__all__ = [
    "call_position",
    "caller_position",
    "is_at_position",
    "is_in_event_loop",
    "is_in_write",
    "write_code",
]

#: The code of the functions that ``print`` calls, and of those that look up their caller.
write_code: set[CodeType] = set()


def is_in_write(thread: int) -> bool:
    """Return True if a thread is in a ``write``."""
    frame = thread_frames().get(thread)
    while frame is not None:
        if frame.f_code in write_code:
            return True
        frame = frame.f_back
    return False


def call_position() -> tuple[int, ...]:
    """Return a position that all parts of one ``print`` share, and two calls rarely do."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented
    while frame is not None and frame.f_code in write_code:
        frame = frame.f_back
    if frame is None:
        return ()
    return threading.get_ident(), id(frame), frame.f_lasti


def caller_position() -> tuple[int, int]:
    """Return the position of the code that has called the stream of a log.

    This takes a quarter of the time of :func:`call_position`, and is less exact.
    """
    try:
        frame = sys._getframe(3)  # noqa: SLF001 - documented
    except ValueError:  # a thread that does nothing but print
        return 0, 0
    return id(frame), frame.f_lasti


def is_at_position(thread: int, position: tuple[int, int] | None) -> bool:
    """Return True if a thread is still at a position that :func:`caller_position` returned."""
    if position is None:
        return False
    frame = thread_frames().get(thread)
    while frame is not None:
        if (id(frame), frame.f_lasti) == position:
            return True
        frame = frame.f_back
    return False


def is_in_event_loop() -> bool:
    """Return True if an asyncio event loop runs in the calling thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
