"""Restoration of settings that all jobs in a process share.

No job can have its own recursion limit, locale or default timeout of sockets. These settings are
read whenever a job begins or ends. If a setting has changed in between, one of the jobs that ran
meanwhile has changed it, or the job that was seen to call its function. The setting is restored
when the last of these jobs has ended. Settings that a module changes during its import stay.
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
    """One setting of a process or a thread.

    Attributes
    ----------
    name
        Its name in a log.
    read
        Returns its value, None if it has none now.
    restore
        Sets it to a value that was read before. May raise OSError or ValueError.
    by_value
        Whether equal values are the same; otherwise only the same object is.
    is_logged
        Whether the job's log says that it was restored.
    is_read_when_set
        Whether it is read only after a call of a function that sets it, as reading it is slow.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    by_value: bool = True
    is_logged: bool = True
    is_read_when_set: bool = False

    def is_same(self, one: Any, other: Any) -> bool:
        """Return True if a value has not changed."""
        return one is other or (
            self.by_value and call_or_default(lambda: bool(one == other), False)
        )


def changed_settings(
    settings: Sequence[SharedSetting], before: Sequence[Any], now: Sequence[Any]
) -> list[int]:
    """Return the indices of the settings that have changed."""
    return [
        i
        for i, setting in enumerate(settings)
        if before[i] is not now[i] and not setting.is_same(before[i], now[i])
    ]


def restore_setting(setting: SharedSetting, value: Any) -> str | None:
    """Restore an earlier value of a setting. Return why that failed, None if it did not."""
    try:
        setting.restore(value)
    except Exception as e:  # noqa: BLE001 - the setting may be any object of a task
        logger.warning("%s cannot be restored: %s", setting.name, e)
        return str(e)
    return None


def _read(setting: SharedSetting) -> Any:
    """Return the value of a setting, None if a task has left one that cannot be read."""
    return call_or_default(setting.read, None)


class _Job:
    """One job that runs in this process."""

    __slots__ = ("__weakref__",)


class SettingsRestorer:
    """Restorer of the settings of this process that jobs change.

    Parameters
    ----------
    settings
        The settings.

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

    def __init__(self, settings: Sequence[SharedSetting]) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._running: set[_Job] = set()
        self._baseline: list[Any] = []
        self._last: list[Any] = []
        # The jobs that may have changed each setting, and the settings with several such jobs.
        self._suspects: dict[int, set[_Job]] = {}
        self._shared: set[int] = set()
        self._current: ContextVar[_Job | None] = ContextVar("girder_dask_state", default=None)

    @contextlib.contextmanager
    def restoring(self, write: Callable[[str], object]) -> Iterator[None]:
        """Restore the settings that a job in the block has changed, at its end.

        Parameters
        ----------
        write
            Called with a line for the job's log for each setting that was restored.
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
                lines = [line for i in self._release(job) if (line := self._restore(i))]
            for line in lines:
                write(line)

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Keep settings that modules change while the block imports them for the first time."""
        known = len(sys.modules)
        with self._lock:
            before = self._read(self._last) if self._running else None
        yield
        if before is None or len(sys.modules) == known:
            return
        with self._lock:
            now = self._read(self._last)
            self._adopt(changed_settings(self._settings, before, now), now)

    def record(self, name: str) -> None:
        """Record that a setting has just been set, by the calling job if there is one."""
        with self._lock:
            if not self._last:
                return  # no job has run here yet
            i = next(i for i, setting in enumerate(self._settings) if setting.name == name)
            now = list(self._last)
            now[i] = _read(self._settings[i])
            changed = changed_settings(self._settings, self._last, now)
            job = self._current.get()
            if job is None or job not in self._running or is_importing():
                self._adopt(changed, now)
            else:
                self._suspect(changed, now, {job})

    def _read(self, last: Sequence[Any] = ()) -> list[Any]:
        """Read the settings. Take those that are read only when set from ``last``."""
        if not last:
            return [_read(setting) for setting in self._settings]
        return [
            last[i] if setting.is_read_when_set else _read(setting)
            for i, setting in enumerate(self._settings)
        ]

    def _look(self) -> None:
        now = self._read(self._last)
        if self._running:
            self._suspect(changed_settings(self._settings, self._last, now), now, self._running)
        else:  # no job has changed them
            self._baseline, self._last = now, list(now)

    def _adopt(self, changed: Sequence[int], now: Sequence[Any]) -> None:
        for i in changed:
            self._baseline[i] = self._last[i] = now[i]
            self._suspects.pop(i, None)

    def _suspect(self, changed: Sequence[int], now: Sequence[Any], jobs: set[_Job]) -> None:
        for i in changed:
            self._last[i] = now[i]
            if self._settings[i].is_same(self._baseline[i], now[i]):
                self._suspects.pop(i, None)  # it was restored already
                continue
            self._suspects[i] = set(jobs)
            (self._shared.add if len(jobs) > 1 else self._shared.discard)(i)

    def _release(self, job: _Job) -> list[int]:
        """Drop a job as a suspect, and return the changed settings without remaining suspects."""
        left = []
        for i, suspects in list(self._suspects.items()):
            if job in suspects:
                suspects.discard(job)
                if not suspects:
                    del self._suspects[i]
                    left.append(i)
        return left

    def _restore(self, i: int) -> str | None:
        setting = self._settings[i]
        problem = restore_setting(setting, self._baseline[i])
        self._last[i] = _read(setting)
        if problem is not None:
            self._baseline[i] = self._last[i]
        elif not setting.is_logged:
            return None
        is_sure = i not in self._shared
        who = "The task" if is_sure else "This task, or a job that ran at the same time,"
        return log_line(setting, who, "process", problem)


def log_line(setting: SharedSetting, who: str, what: str, problem: str | None) -> str:
    """Return the line for a job's log about a setting that was restored."""
    end = (
        "It was restored."
        if problem is None
        else f"It cannot be restored ({problem}), so later jobs have it until the worker restarts."
    )
    return (
        f"{who} has changed {setting.name}, which other jobs in the worker's {what} share. {end} "
        "With isolation='process' a task has a process of its own.\n"
    )
