"""The scheduler's preload: ``dask scheduler --preload girder_dask.scheduler_hooks``.

This module connects the two sides: the scheduler sends workers and nannies their plugins, and
neither side imports the other.
"""

from __future__ import annotations

from distributed import Scheduler

from girder_dask.scheduler.plugin import GirderSchedulerPlugin, WorkerSide
from girder_dask.worker.nanny_plugin import GirderNannyPlugin
from girder_dask.worker.plugin import GirderWorkerPlugin, run_job

__all__ = ["dask_setup", "make_plugin"]


def make_plugin(api_url: str | None = None, credential: str | None = None) -> GirderSchedulerPlugin:
    """Return the scheduler plugin together with the plugins that it sends to workers.

    Parameters
    ----------
    api_url, credential
        Girder's REST API and the scheduler's API key, by default those of Dask's
        configuration (``girder.api-url``, ``girder.credential``).
    """
    workers = WorkerSide(run_job, GirderWorkerPlugin, GirderNannyPlugin)
    return GirderSchedulerPlugin(workers, api_url, credential)


def dask_setup(scheduler: Scheduler) -> None:
    """Install the plugin. Dask calls this for ``--preload`` and for its ``preload`` setting."""
    scheduler.add_plugin(make_plugin())
