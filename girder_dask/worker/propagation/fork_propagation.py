"""Propagation of a job into its forks, whose output goes to its log.

Fork hooks cannot be removed. They do nothing while propagation is not installed.
"""

from __future__ import annotations

import contextlib
import os

from girder_dask.worker.capture import standard_streams
from girder_dask.worker.interruption import job_threads
from girder_dask.worker.job_log import log as job_log
from girder_dask.worker.job_log.log import JobLog, current

__all__ = ["install", "uninstall"]

_has_hooks = False
_is_active = False
#: The identities of descriptors 1 and 2 when the worker forked.
_standard: dict[int, tuple[int, int]] = {}


def install() -> None:
    """Start to propagate jobs into forks."""
    global _has_hooks, _is_active
    _is_active = True
    if not _has_hooks:
        os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
        _has_hooks = True


def uninstall() -> None:
    """Undo :func:`install`."""
    global _is_active
    _is_active = False


def _before_fork() -> None:
    log = current.get() if _is_active else None
    if log is None:
        return
    # The child would write the buffered text of the worker's own streams a second time.
    standard_streams.flush_originals()
    with contextlib.suppress(ValueError):  # closed: the child writes to the worker's stderr
        log.pipe(for_fork=True)
    _standard.clear()
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            _standard[fd] = _identity(fd)


def _after_fork_in_child() -> None:
    if not _is_active:
        return
    job_log.after_fork_in_child()
    job_threads.after_fork_in_child()
    log = current.get()
    if log is not None:
        _redirect_descriptors(log)


def _redirect_descriptors(log: JobLog) -> None:
    """Make descriptors 1 and 2 of this child the job's pipe, for code that is not Python."""
    try:
        pipe = log.pipe()
    except ValueError:
        return
    for fd, identity in _standard.items():
        with contextlib.suppress(OSError):
            # os.forkpty() has replaced them by a pseudo-terminal before.
            if _identity(fd) == identity:
                os.dup2(pipe, fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
