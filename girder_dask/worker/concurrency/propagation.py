"""Propagation of a job into what it starts: threads, thread pools, subprocesses and forks.

While installed, and only for code that runs in a job:

* ``threading.Thread.start``: the thread runs with the context of the one that starts it, and
  is one of the job's threads (see :mod:`girder_dask.worker.interruption.job_threads`).
* ``ThreadPoolExecutor.submit``: the work runs in a copy of the context of the submitter,
  also outside of jobs, as the pool's threads may have been started by another job. The
  pool's thread is one of the job's while it works.
* ``time.sleep`` and ``Thread.join`` become waits that an interruption ends (see
  :mod:`girder_dask.worker.interruption.interruptible_waits`).
* ``subprocess.Popen``: a stream that the child would inherit from the worker becomes the
  job's pipe; so does one that is named as ``sys.stdout``, ``sys.stderr`` or their
  descriptors. Others are left alone. ``os.popen`` and asyncio use it too. The child's
  environment has the name of the run, by which its descendants are found.
* ``os.system``: runs the shell through ``subprocess``.
* ``os.fork``, and ``multiprocessing`` with the start method ``fork``: the child's streams and
  its descriptors 1 and 2 become the job's pipe.

Known limits
------------
``multiprocessing`` with ``spawn`` or ``forkserver``, ``os.posix_spawn`` and threads started
with ``_thread`` write to the worker's own log. The threads of a ``multiprocessing.pool.ThreadPool``
belong to the job that made the pool; so does a thread that a library keeps for later jobs to the
one that needed it first. What runs in a pool's ``initializer``, or in an event loop that has a
thread of its own, is not interrupted with its job. What C code has put into the environment of
the process without Python is not in that of a subprocess. Nothing but threads is carried on
Windows.
"""

from __future__ import annotations

import os
import threading

from girder_dask.worker.concurrency import (
    fork_propagation,
    subprocess_propagation,
    thread_propagation,
)

__all__ = ["install", "uninstall"]

_MODULES = (
    (thread_propagation, subprocess_propagation, fork_propagation)
    if os.name == "posix"
    else (thread_propagation,)
)
_is_installed = False
_install_lock = threading.Lock()


def install() -> None:
    """Start to carry jobs into what they start. Does nothing the second time."""
    global _is_installed
    with _install_lock:
        if not _is_installed:
            _is_installed = True
            for module in _MODULES:
                module.install()


def uninstall() -> None:
    """Put back what :func:`install` replaced, unless it has been replaced since."""
    global _is_installed
    with _install_lock:
        if _is_installed:
            _is_installed = False
            for module in _MODULES:
                module.uninstall()
