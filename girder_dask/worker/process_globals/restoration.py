"""State of a process that all jobs in it share, and how it is put back.

The recursion limit, the locale or the default timeout of sockets cannot be given to a job alone.
They are looked at when a job begins and when one ends. What has changed between two looks was
changed by one of the jobs that ran meanwhile, or by the very one that called the function that sets
it; it is put back when the last of these has ended. What a module sets while it is imported stays.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from girder_dask.utils.foreign_objects import call_or_default
from girder_dask.worker.process_globals.environ import is_importing

__all__ = ["SettingsRestorer", "SharedSetting", "changed_settings", "restore_setting"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedSetting:
    """One piece of state.

    Attributes
    ----------
    name
        What it is called in a log.
    read
        Returns its value, None if it has none now.
    restore
        Sets it to a value that was read before. It may raise OSError or ValueError.
    by_value
        Whether equal values are the same; else only the same object is.
    is_logged
        Whether a log says so when it was put back.
    is_read_when_set
        Whether it is read only after a function was called that sets it, as to read it is slow.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    by_value: bool = True
    is_logged: bool = True
    is_read_when_set: bool = False

    def is_same(self, one: Any, other: Any) -> bool:
        """Say whether a value is still what it was."""
        return one is other or (
            self.by_value and call_or_default(lambda: bool(one == other), False)
        )


def changed_settings(
    items: Sequence[SharedSetting], before: Sequence[Any], now: Sequence[Any]
) -> list[int]:
    """Return which items have changed."""
    return [
        i
        for i, item in enumerate(items)
        if before[i] is not now[i] and not item.is_same(before[i], now[i])
    ]


def restore_setting(item: SharedSetting, value: Any) -> str | None:
    """Set an item to an earlier value, and return why that failed, None if it did not."""
    try:
        item.restore(value)
    except Exception as e:  # noqa: BLE001 - a task may have put anything in its place
        logger.warning("%s cannot be put back: %s", item.name, e)
        return str(e)
    return None


def _read(item: SharedSetting) -> Any:
    """Return the value of an item, None where a task has left what cannot be read."""
    return call_or_default(item.read, None)


class _Job:
    """One job that runs in this process."""

    __slots__ = ("__weakref__",)


class SettingsRestorer:
    """The shared state of this process.

    Parameters
    ----------
    items
        What it consists of.

    Examples
    --------
    >>> limit = SharedSetting('The recursion limit', sys.getrecursionlimit, sys.setrecursionlimit)
    >>> before = sys.getrecursionlimit()
    >>> told = []
    >>> with SettingsRestorer([limit]).restoring(told.append):
    ...     sys.setrecursionlimit(before + 1)
    >>> sys.getrecursionlimit() == before, len(told)
    (True, 1)
    """

    def __init__(self, items: Sequence[SharedSetting]) -> None:
        self._items = items
        self._lock = threading.RLock()
        self._running: set[_Job] = set()
        self._baseline: list[Any] = []
        self._last: list[Any] = []
        # Who may have changed an item that is not as it was; and whether that is sure.
        self._suspects: dict[int, set[_Job]] = {}
        self._shared: set[int] = set()
        self._current: ContextVar[_Job | None] = ContextVar("girder_dask_state", default=None)

    @contextlib.contextmanager
    def restoring(self, write: Callable[[str], object]) -> Iterator[None]:
        """Put back in the end what a job within has changed.

        Parameters
        ----------
        write
            Called with a line for the job's log for each thing that was put back.
        """
        job = _Job()
        with self._lock:
            self._look()
            self._running.add(job)
        token = self._current.set(job)
        try:
            yield
        finally:
            self._current.reset(token)
            with self._lock:
                self._look()
                self._running.discard(job)
                lines = [line for i in self._left_by(job) if (line := self._put_back(i))]
            for line in lines:
                write(line)

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Leave what modules set that are imported within, for the first time, as it is."""
        known = len(sys.modules)
        with self._lock:
            before = self._read(self._last) if self._running else None
        yield
        if before is None or len(sys.modules) == known:
            return
        with self._lock:
            now = self._read(self._last)
            self._adopt(changed_settings(self._items, before, now), now)

    def note(self, name: str) -> None:
        """Look at an item that has just been set: by the calling job, if it is one."""
        with self._lock:
            if not self._last:
                return  # no job has run here yet
            i = next(i for i, item in enumerate(self._items) if item.name == name)
            now = list(self._last)
            now[i] = _read(self._items[i])
            changed = changed_settings(self._items, self._last, now)
            job = self._current.get()
            if job is None or job not in self._running or is_importing():
                self._adopt(changed, now)
            else:
                self._suspect(changed, now, {job})

    def _read(self, last: Sequence[Any] = ()) -> list[Any]:
        """Read all, or take from ``last`` what is read only when it was set."""
        if not last:
            return [_read(item) for item in self._items]
        return [
            last[i] if item.is_read_when_set else _read(item) for i, item in enumerate(self._items)
        ]

    def _look(self) -> None:
        now = self._read(self._last)
        if self._running:
            self._suspect(changed_settings(self._items, self._last, now), now, self._running)
        else:  # whoever has changed it was no job
            self._baseline, self._last = now, list(now)

    def _adopt(self, changed: Sequence[int], now: Sequence[Any]) -> None:
        for i in changed:
            self._baseline[i] = self._last[i] = now[i]
            self._suspects.pop(i, None)

    def _suspect(self, changed: Sequence[int], now: Sequence[Any], jobs: set[_Job]) -> None:
        for i in changed:
            self._last[i] = now[i]
            if self._items[i].is_same(self._baseline[i], now[i]):
                self._suspects.pop(i, None)  # somebody has put it back
                continue
            self._suspects[i] = set(jobs)
            (self._shared.add if len(jobs) > 1 else self._shared.discard)(i)

    def _left_by(self, job: _Job) -> list[int]:
        """Return what nobody who may have changed it uses any more."""
        left = []
        for i, suspects in list(self._suspects.items()):
            if job in suspects:
                suspects.discard(job)
                if not suspects:
                    del self._suspects[i]
                    left.append(i)
        return left

    def _put_back(self, i: int) -> str | None:
        item = self._items[i]
        problem = restore_setting(item, self._baseline[i])
        self._last[i] = _read(item)
        if problem is not None:
            self._baseline[i] = self._last[i]
        elif not item.is_logged:
            return None
        is_sure = i not in self._shared
        who = "The task" if is_sure else "This task, or a job that ran at the same time,"
        return log_line(item, who, "process", problem)


def log_line(item: SharedSetting, who: str, what: str, problem: str | None) -> str:
    """Return the line for a job's log that says what was put back."""
    end = (
        "It was put back."
        if problem is None
        else f"It cannot be put back ({problem}), so later jobs have it until the worker restarts."
    )
    return (
        f"{who} has changed {item.name}, which other jobs in the worker's {what} share. {end} "
        "With isolation='process' a task has a process of its own.\n"
    )
