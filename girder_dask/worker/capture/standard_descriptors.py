"""Descriptors 0, 1 and 2 of a worker's process, restored after tasks that redirect them.

All jobs in the process share them, so a task that redirects one redirects the output of C code and
subprocesses of other jobs. That cannot be confined to one job, but it ends with the job.
``os.dup2`` records its caller. Changes by C code or ``os.close`` are detected by comparison, and
undone when no other job runs that may have made them.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from girder_dask.utils.monkey_patches import MonkeyPatches
from girder_dask.worker.job_log.log import JobLog, current

__all__ = ["begin_run", "end_run", "install", "uninstall"]

_NAMES = {0: "standard input", 1: "standard output", 2: "standard error"}

_Identity = tuple[int, int] | None

_lock = threading.RLock()
#: Duplicates of the process's own descriptors, and their identities.
_originals: dict[int, tuple[int, _Identity]] = {}
#: The job that has redirected a descriptor, and the identity of its target.
_changed: dict[int, tuple[weakref.ref[JobLog], _Identity]] = {}
_running: weakref.WeakSet[JobLog] = weakref.WeakSet()
#: Jobs that have run at the same time as others.
_accompanied: weakref.WeakSet[JobLog] = weakref.WeakSet()
_patches = MonkeyPatches()


def install() -> None:
    """Save the descriptors of this process, and record redirections."""
    with _lock:
        for fd in _NAMES:
            _save(fd)
        _patches.apply(os, "dup2", _recording)


def uninstall() -> None:
    """Undo :func:`install`."""
    with _lock:
        _patches.undo()
        for kept, _ in _originals.values():
            os.close(kept)
        _originals.clear()
        _changed.clear()


def begin_run(log: JobLog) -> None:
    """Record that a job runs. What the descriptors are while none runs is the process's own."""
    with _lock:
        if not _running:
            for fd, (_, identity) in list(_originals.items()):
                if _identity(fd) != identity:
                    _save(fd)
        if _running:
            _accompanied.update({*_running, log})
        _running.add(log)


def end_run(log: JobLog) -> None:
    """Restore what a job has redirected, with a line in its log."""
    with _lock:
        _running.discard(log)
        for fd, (_, identity) in _originals.items():
            if _identity(fd) == identity:
                _changed.pop(fd, None)
        changed = {fd: _was_by(fd, log) for fd in _originals if _must_restore(fd, log)}
        for fd in changed:
            os.dup2(_originals[fd][0], fd)
            _changed.pop(fd, None)  # it was recorded as the job's
        alone = log not in _accompanied
    for fd, is_own in changed.items():
        who = "The task" if is_own or alone else "This task, or a job that ran at the same time,"
        log.write(
            f"{who} has redirected descriptor {fd} ({_NAMES[fd]}), which other jobs in the "
            "worker's process share. It was restored. With isolation='process' a task has a "
            "process of its own.\n"
        )


def _recording(original: Callable[..., int]) -> Callable[..., int]:
    def dup2(fd: int, fd2: int, inheritable: bool = True) -> int:
        result = original(fd, fd2, inheritable)
        if fd2 in _NAMES:
            _record(fd2)
        return result

    return dup2


def _record(fd: int) -> None:
    log = current.get()
    with _lock:
        if log is None:
            _changed.pop(fd, None)
            _save(fd)
        else:
            _changed[fd] = (weakref.ref(log), _identity(fd))


def _save(fd: int) -> None:
    """Save the present target of a descriptor as the process's own."""
    earlier = _originals.pop(fd, None)
    if earlier is not None:
        os.close(earlier[0])
    with contextlib.suppress(OSError):  # closed: there is nothing to restore
        _originals[fd] = (os.dup(fd), _identity(fd))


def _was_by(fd: int, log: JobLog) -> bool:
    """Return True if a job has redirected a descriptor to its present target, by the record."""
    owner, identity = _changed.get(fd, (None, None))
    return owner is not None and owner() is log and identity == _identity(fd)


def _must_restore(fd: int, log: JobLog) -> bool:
    now = _identity(fd)
    if now == _originals[fd][1]:
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
