"""What jobs write, each to a log of its own.

``JobLog`` is the log of one running job. :mod:`~girder_dask.worker.capture.install` leads what a
job's thread writes there, :mod:`~girder_dask.worker.concurrency.propagation` what its child
threads, subprocesses and forks write.
"""

from girder_dask.worker.capture.install import (
    JobLog,
    adopt,
    capturing,
    current,
    finishing,
    install,
    loaded,
    running,
    uninstall,
)

__all__ = [
    "JobLog",
    "adopt",
    "capturing",
    "current",
    "finishing",
    "install",
    "loaded",
    "running",
    "uninstall",
]
