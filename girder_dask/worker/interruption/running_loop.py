"""The asyncio event loop that runs in a thread."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from contextvars import Context
from types import FrameType
from typing import Any

__all__ = ["RunningLoop"]


class RunningLoop:
    """An event loop that runs in another thread.

    Attributes
    ----------
    has_canceled
        Whether the loop has canceled its tasks.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self.has_canceled = False

    @classmethod
    def of(cls, frame: FrameType | None) -> RunningLoop | None:
        """Return the innermost loop that runs above a frame, if there is one."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is None:
            return None
        while frame is not None:
            name = frame.f_code.co_name
            if name in ("run_forever", "run_until_complete"):
                found = frame.f_locals.get("self")
            elif name == "run" and frame.f_code.co_filename.endswith("asyncio/runners.py"):
                found = getattr(frame.f_locals.get("self"), "_loop", None)  # uvloop has no frames
            else:
                found = None
            if isinstance(found, asyncio.AbstractEventLoop):
                return cls(found)
            frame = frame.f_back
        return None

    def cancel_tasks(self) -> None:
        """Have the loop cancel all of its tasks in its next iteration."""
        self._call(self._cancel)

    def wake(self) -> None:
        """Wake the loop."""
        self._call(lambda: None)

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            Context().run(self._loop.call_soon_threadsafe, function)

    def _cancel(self) -> None:
        import asyncio

        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.has_canceled = True
