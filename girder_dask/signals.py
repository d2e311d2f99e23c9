"""Signals that ask the process of a worker to end."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

__all__ = ["Signals"]

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Has a worker do something before SIGINT or SIGTERM ends its process.

    Only the main thread of a process can do that: in any other one this does nothing. A
    second signal does what it would have done without this.

    Parameters
    ----------
    leave
        Coroutine function that is called once, on the running event loop.
    child
        Whether the process is there for the worker alone. Else signals without a handler are
        left alone: the process has another purpose.
    """

    def __init__(self, leave: Callable[[], Awaitable[None]], *, child: bool) -> None:
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _NUMBERS:
            before = signal.getsignal(number)
            if child or (callable(before) and before is not signal.default_int_handler):
                self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Nothing else is safe within a signal.
        before = self._restore().get(number)
        self._loop.call_soon_threadsafe(self._begin, number, before)

    def _begin(self, number: int, before: Any) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._end(number, before))

    async def _end(self, number: int, before: Any) -> None:
        await self._leave()
        if callable(before):
            before(number, None)

    def _restore(self) -> dict[int, Any]:
        before, self._before = self._before, {}
        for number, handler in before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        return before

    def close(self) -> None:
        """Leave signals alone again."""
        if threading.current_thread() is threading.main_thread():
            self._restore()
