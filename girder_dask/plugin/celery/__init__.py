"""girder_worker's tasks in Girder: their messages become jobs of this package.

Code in Girder sends them only where ``GIRDER_WORKER_BROKER`` is ``dask://``. What jobs on Dask send
is taken wherever girder_worker's plugin is installed, so that they end after a switch back.
"""

from __future__ import annotations

from typing import Any

from girder import events
from girder.plugin import getPlugin

from girder_dask import celery
from girder_dask.errors import GirderDaskError
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.girder_events import EVENT_HANDLER, PARENT_HANDLER, WORKER_HANDLER
from girder_dask.tasks.discovery import distributions_by_package

__all__ = ["mount"]

# The handler of girder_worker's jobs.
_CELERY_HANDLER = "celery_handler"


def mount(info: dict[str, Any], backend: GirderBackend) -> None:
    """Run the tasks of girder_worker on Dask, if the site has chosen that.

    Otherwise only the routes are added, for jobs that Dask still has from before.

    Raises
    ------
    GirderDaskError
        If it has, and the packages for it are missing.
    """
    worker = getPlugin("worker")
    if not celery.is_chosen() and worker is None:
        return
    try:
        from girder_worker.app import app

        from girder_dask.plugin.celery import routes
        from girder_dask.plugin.celery.messages import GirderCeleryMessages
    except ModuleNotFoundError as e:
        if not celery.is_chosen():
            return
        raise GirderDaskError(
            f"GIRDER_WORKER_BROKER is {celery.BROKER_URL}, and a package that this needs is not "
            f"installed in Girder ({e}). Run pip install 'girder_dask[celery]' there."
        ) from e
    messages = GirderCeleryMessages(backend)
    routes.mount(info["apiRoot"].dask, backend, messages)
    if celery.is_chosen():
        _send_to_dask(info, app, worker)
        backend.celery_messages = messages
        messages.ensure_index()


def _send_to_dask(info: dict[str, Any], app: Any, worker: Any) -> None:
    """Have code in Girder send its messages to Dask."""
    from girder_dask.celery import publishing

    if worker is not None:
        worker.load(info)
    # It would put a token into each job that is saved.
    events.unbind("model.job.save.after", WORKER_HANDLER)
    events.bind("model.job.save.after", EVENT_HANDLER, _attach_job_info)
    # It would take the job that was replaced for the parent of what its replacement starts.
    events.unbind("model.job.save", WORKER_HANDLER)
    events.bind("model.job.save", PARENT_HANDLER, _attach_parent)
    publishing.install(app)
    publishing.warm_up(app)
    distributions_by_package()  # the first message would wait for it too


def _attach_job_info(event: Any) -> None:
    """Attach what a worker of Celery needs to a job that it has created.

    Workers that still take jobs from RabbitMQ create those of the calls that follow.
    """
    job = event.info
    if job.get("handler") == _CELERY_HANDLER and job.get("celeryParentTaskId"):
        from girder_plugin_worker.event_handlers import attachJobInfoSpec

        attachJobInfoSpec(event)


def _attach_parent(event: Any) -> None:
    """Attach the parent to a job that a worker of Celery has created. Jobs on Dask have theirs."""
    if "dask" not in event.info:
        from girder_plugin_worker.event_handlers import attachParentJob

        attachParentJob(event)
