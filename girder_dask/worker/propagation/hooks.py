"""Hooks that propagate a job into its threads, thread pools, subprocesses and forks.

While installed, and only for code that runs in a job:

* ``threading.Thread.start``: the thread runs with the context of the thread that starts it, and
  is one of the job's threads (see :mod:`girder_dask.worker.interruption.job_threads`).
* ``ThreadPoolExecutor.submit``: the work runs in a copy of the context of the submitter,
  also outside of jobs, because another job may have started the pool's threads. The
  pool's thread is one of the job's while it does this work.
* ``time.sleep`` and ``Thread.join`` become waits that an interruption ends (see
  :mod:`girder_dask.worker.interruption.interruptible_waits`).
* ``subprocess.Popen``: a stream that the child would inherit from the worker becomes the
  job's pipe; so does one that is given as ``sys.stdout``, ``sys.stderr`` or their
  descriptors. Others do not change. ``os.popen`` and asyncio use it too. The child's
  environment has the id of the run, by which its descendants are found.
* ``os.system``: runs the shell through ``subprocess``.
* ``os.fork``, and ``multiprocessing`` with the start method ``fork``: the child's streams and
  its descriptors 1 and 2 become the job's pipe.

Known limits
------------
``multiprocessing`` with ``spawn`` or ``forkserver``, ``os.posix_spawn`` and threads started
with ``_thread`` write to the worker's own log. The threads of a ``multiprocessing.pool.ThreadPool``
belong to the job that created the pool. A thread that a library keeps for later jobs belongs to the
job that first needed it. Code in a pool's ``initializer``, or in an event loop with a thread of its
own, is not interrupted with its job. Variables that C code has set in the environment of the
process do not reach subprocesses. On Windows, jobs are propagated into threads only.
"""

from __future__ import annotations

import os
import threading

from girder_dask.worker.propagation import (
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
    """Start to propagate jobs. A second call does nothing."""
    global _is_installed
    with _install_lock:
        if not _is_installed:
            _is_installed = True
            for module in _MODULES:
                module.install()


def uninstall() -> None:
    """Restore what :func:`install` replaced, unless it has been replaced since."""
    global _is_installed
    with _install_lock:
        if _is_installed:
            _is_installed = False
            for module in _MODULES:
                module.uninstall()
