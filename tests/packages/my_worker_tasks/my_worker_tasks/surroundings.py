"""A task that says where it runs."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from girder_dask import current_job, task


@task
def env() -> dict[str, Any]:
    """Return where this runs.

    The keys are ``pid``, ``thread`` (its name), ``worker`` (its Dask name, None where
    there is no Dask worker), ``hostname``, ``python``, ``job`` (the job's id), ``attempt``
    and ``work_dir``.
    """
    import distributed

    try:
        worker: Any = str(distributed.get_worker().name)
    except ValueError:  # not on a worker
        worker = None
    job = current_job()
    return {
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
        "worker": worker,
        "hostname": os.uname().nodename,
        "python": sys.version.split()[0],
        "job": job.id,
        "attempt": job.request.attempt,
        "work_dir": str(job.work_dir) if job.work_dir else None,
    }
