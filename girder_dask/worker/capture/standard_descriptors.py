"""Descriptors 0, 1 and 2 of a worker's process, and what tasks lead elsewhere with ``os.dup2``.

They belong to all jobs in the process, so a task that redirects one redirects what C code and
subprocesses of others write. It cannot be kept to one job, but it ends with the job that did it.
``os.dup2`` notes who has called it; what C code does, or ``os.close``, is seen by comparison, and
put back when no other job runs that may have done it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from girder_dask.worker.job_log.log import JobLog, current

__all__ = ["begin_run", "end_run", "install", "uninstall"]

_NAMES = {0: "standard input", 1: "standard output", 2: "standard error"}

_Identity = tuple[int, int] | None

_lock = threading.RLock()
#: Duplicates of the process's own, and what these are.
_kept: dict[int, tuple[int, _Identity]] = {}
#: Which job has led one elsewhere, and to what.
_changed: dict[int, tuple[weakref.ref[JobLog], _Identity]] = {}
_running: weakref.WeakSet[JobLog] = weakref.WeakSet()
#: Those that were not alone all the time.
_accompanied: weakref.WeakSet[JobLog] = weakref.WeakSet()
_original: Callable[..., int] | None = None
_replacement: Callable[..., int] | None = None


def install() -> None:
    """Remember the descriptors of this process, and who changes them."""
    global _original, _replacement
    with _lock:
        for fd in _NAMES:
            _keep(fd)
        _original = os.dup2
        _replacement = os.dup2 = functools.wraps(_original)(_make(_original))


def uninstall() -> None:
    """Forget them."""
    global _original, _replacement
    with _lock:
        if _original is not None and os.dup2 is _replacement:
            os.dup2 = _original
        _original = _replacement = None
        for kept, _ in _kept.values():
            os.close(kept)
        _kept.clear()
        _changed.clear()


def begin_run(log: JobLog) -> None:
    """Regard a job as running. What is found while none runs is the process's own."""
    with _lock:
        if not _running:
            for fd, (_, identity) in list(_kept.items()):
                if _identity(fd) != identity:
                    _keep(fd)
        if _running:
            _accompanied.update({*_running, log})
        _running.add(log)


def end_run(log: JobLog) -> None:
    """Put back what a job has changed, and say so in its log."""
    with _lock:
        _running.discard(log)
        changed = {fd: _was_by(fd, log) for fd in _kept if _is_to_be_put_back(fd, log)}
        for fd in changed:
            os.dup2(_kept[fd][0], fd)
            _changed.pop(fd, None)  # it was noted as the job's
        alone = log not in _accompanied
    for fd, is_own in changed.items():
        who = "The task" if is_own or alone else "This task, or a job that ran at the same time,"
        log.write(
            f"{who} has led descriptor {fd} ({_NAMES[fd]}) elsewhere, which other jobs in the "
            "worker's process share. It was put back. With isolation='process' a task has a "
            "process of its own.\n"
        )


def _make(original: Callable[..., int]) -> Callable[..., int]:
    def dup2(fd: int, fd2: int, inheritable: bool = True) -> int:
        result = original(fd, fd2, inheritable)
        if fd2 in _NAMES:
            _note(fd2)
        return result

    return dup2


def _note(fd: int) -> None:
    log = current.get()
    with _lock:
        if log is None:
            _changed.pop(fd, None)
            _keep(fd)
        else:
            _changed[fd] = (weakref.ref(log), _identity(fd))


def _keep(fd: int) -> None:
    """Take what a descriptor is now for the process's own."""
    earlier = _kept.pop(fd, None)
    if earlier is not None:
        os.close(earlier[0])
    with contextlib.suppress(OSError):  # closed: there is nothing to put back
        _kept[fd] = (os.dup(fd), _identity(fd))


def _was_by(fd: int, log: JobLog) -> bool:
    """Say whether a job is known to have led a descriptor to where it leads."""
    owner, identity = _changed.get(fd, (None, None))
    return owner is not None and owner() is log and identity == _identity(fd)


def _is_to_be_put_back(fd: int, log: JobLog) -> bool:
    now = _identity(fd)
    if now == _kept[fd][1]:
        _changed.pop(fd, None)
        return False
    owner, identity = _changed.get(fd, (None, None))
    by: Any = None if owner is None or identity != now else owner()
    return by is log or not any(other is by or by is None for other in _running)


def _identity(fd: int) -> _Identity:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
