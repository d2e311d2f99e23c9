"""Run the jobs of a Girder site on a Dask cluster.

Importing this package is quick and loads neither ``girder`` nor ``distributed``, so that
a package of tasks can be imported anywhere.
"""

from girder_dask._version import __version__
from girder_dask.composition import chain, chord, group
from girder_dask.connection import Connection, connect
from girder_dask.context import current_job
from girder_dask.errors import (
    GirderDaskError,
    JobCanceled,
    JobFailed,
    JobInterrupted,
    NotConnectedError,
)
from girder_dask.porting import app, girder_job
from girder_dask.progress import progress
from girder_dask.result import JobResult, MapResult
from girder_dask.task import Task, task
from girder_dask.waiting import as_completed, gather

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
