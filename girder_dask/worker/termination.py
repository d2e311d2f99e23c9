"""Signal handlers of a worker: SIGTERM closes it in good order, alarms do not end it."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from girder_dask.utils.background import Guard, log_failure

__all__ = ["AlarmSignals", "TerminationSignals"]

logger = logging.getLogger(__name__)

# Signals of timers and limits, which end a process that has no handler.
_ALARM_SIGNALS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGXCPU)

_TERMINATION_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TerminationSignals:
    """Handlers of SIGINT and SIGTERM, with which a worker leaves in good order.

    A second signal has its usual effect. Only the main thread of a process can set handlers: in
    any other thread this does nothing.

    Parameters
    ----------
    leave
        Coroutine function that is called once, on the running event loop.
    child
        Whether the process was started for the worker. In any other process, signals without a
        handler stay as they are.
    """

    def __init__(self, leave: Callable[[], Awaitable[None]], *, child: bool) -> None:
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _TERMINATION_SIGNALS:
            before = signal.getsignal(number)
            if child or (callable(before) and before is not signal.default_int_handler):
                self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Nothing else is safe in a signal handler.
        before = self._restore().get(number)
        self._loop.call_soon_threadsafe(self._begin, number, before)

    def _begin(self, number: int, before: Any) -> None:
        if self._task is None:
            task = self._loop.create_task(self._end(number, before))
            self._task = log_failure(task, logger, "Ending this process after a signal")

    async def _end(self, number: int, before: Any) -> None:
        with Guard(logger, "Leaving in good order after a signal"):
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
        """Restore the previous handlers."""
        if threading.current_thread() is threading.main_thread():
            self._restore()


class AlarmSignals:
    """Handlers that keep the timers and limits of a task from ending its worker.

    Their signals reach the main thread, not that of the task. In any other thread this does
    nothing. A signal that has a handler keeps it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handled: list[int] = []
        if threading.current_thread() is threading.main_thread():
            for number in _ALARM_SIGNALS:
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, self._on_signal)
                    self._handled.append(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Nothing else is safe in a signal handler.
        self._loop.call_soon_threadsafe(self._log_ignored, number)

    def _log_ignored(self, number: int) -> None:
        logger.warning(
            "This worker received %s and ignored it: a task has set a timer or a limit of the "
            "process, for example with signal.alarm(). Give the task a timeout=, or "
            "isolation='process'.",
            signal.Signals(number).name,
        )

    def close(self) -> None:
        """Remove the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in self._handled:
                if signal.getsignal(number) == self._on_signal:
                    signal.signal(number, signal.SIG_DFL)
