"""The processes of this host, as far as the system shows them to this user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

__all__ = ["Process", "descendants", "has_variable", "running_processes", "send_signal"]


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was seen. ``born`` tells it from a later one with the same ``pid``."""

    pid: int
    parent: int
    group: int
    born: float


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(OSError):  # it has ended, or its number is another user's now
        os.kill(pid, number)


def descendants(root: int) -> list[int]:
    """Return the ids of the running processes that descend from ``root``.

    >>> os.getpid() in descendants(os.getppid())
    True
    """
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(root).children(recursive=True)
        return sorted(child.pid for child in children if _is_running(child))
    return []


def has_variable(pid: int, name: str, value: str) -> bool:
    """Return True if a process was started with a variable in its environment.

    The environment of another user's process cannot be read, so it has none.
    """
    with contextlib.suppress(psutil.Error, OSError):
        return psutil.Process(pid).environ().get(name) == value
    return False


def running_processes() -> Iterator[Process]:
    """Yield each process that has not ended.

    >>> os.getpid() in {process.pid for process in running_processes()}
    True
    """
    left_out = set(psutil.pids())
    for process in psutil.process_iter():
        left_out.discard(process.pid)
        with contextlib.suppress(psutil.Error, OSError):
            found = _observed(process)
            if found is not None:
                yield found
    # When psutil has seen that an id is that of another process now, it yields none the next time.
    for pid in left_out:
        with contextlib.suppress(psutil.Error, OSError):
            found = _facts(psutil.Process(pid))
            if found is not None:
                yield found


def _observed(process: psutil.Process) -> Process | None:
    """Return a process as it is now, None if it has ended."""
    try:
        return _facts(process)
    except psutil.NoSuchProcess:
        # psutil keeps these objects: this one may stand for an earlier process with the same id.
        return _facts(psutil.Process(process.pid))


def _facts(process: psutil.Process) -> Process | None:
    with process.oneshot():
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        group = os.getpgid(process.pid)
        return Process(process.pid, process.ppid(), group, process.create_time())


def _is_running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
