"""Run the jobs of a Girder site on a Dask cluster.

Importing this package is fast, and loads neither Girder nor Dask nor an HTTP client, so that
packages of tasks can be imported anywhere.
"""

from girder_dask._version import __version__
from girder_dask.client.connection import Connection, connect
from girder_dask.client.result import JobResult, MapResult
from girder_dask.client.waiting import as_completed, gather
from girder_dask.errors import (
    GirderDaskError,
    JobCanceled,
    JobFailed,
    JobInterrupted,
    NotConnectedError,
)
from girder_dask.progress import progress
from girder_dask.tasks.composition import chain, chord, group
from girder_dask.tasks.decorator import task
from girder_dask.tasks.girder_worker_compat import app, girder_job
from girder_dask.tasks.running_job import current_job
from girder_dask.tasks.task import Task
from girder_dask.utils.public_names import pin as _pin

__all__ = [  # noqa: RUF022 - grouped by who uses them
    # writing tasks
    "task",
    "Task",
    "current_job",
    "progress",
    # notebooks and scripts
    "connect",
    "Connection",
    "as_completed",
    "gather",
    # using jobs
    "JobResult",
    "MapResult",
    # porting from girder_worker
    "app",
    "girder_job",
    "chain",
    "chord",
    "group",
    # errors that people catch
    "GirderDaskError",
    "JobCanceled",
    "JobFailed",
    "JobInterrupted",
    "NotConnectedError",
    "__version__",
]

# Errors are named after girder_dask.errors, where all of them are.
_pin(globals(), home=("girder_dask.errors",))
