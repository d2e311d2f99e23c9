"""What a thread that prints is doing right now.

``print`` is C code that calls ``write`` once for each part of a line. The interpreter can
turn to another thread only inside those calls.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from types import CodeType, FrameType

__all__ = ["calling", "in_event_loop", "is_writing", "writing_code"]

#: The code of the functions that ``print`` calls, and of what they call to find out who did.
writing_code: set[CodeType] = set()


def is_writing(thread: int) -> bool:
    """Say whether a thread is in a ``write``, as one that lost its turn in ``print`` always is."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented, and the only way
    while frame is not None:
        if frame.f_code in writing_code:
            return True
        frame = frame.f_back
    return False


def calling() -> tuple[int, ...]:
    """Return what is the same for all parts of one ``print``, and hardly for those of two."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented
    while frame is not None and frame.f_code in writing_code:
        frame = frame.f_back
    if frame is None:
        return ()
    return threading.get_ident(), id(frame), frame.f_lasti


def in_event_loop() -> bool:
    """Say whether an asyncio event loop runs in the calling thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
