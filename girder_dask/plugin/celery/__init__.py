"""girder_worker's tasks in Girder: their messages become jobs of this package.

It is set up only where ``GIRDER_WORKER_BROKER`` is ``dask://``, and needs the extra ``celery``.
"""

from __future__ import annotations

from typing import Any

from girder import events
from girder.plugin import getPlugin

from girder_dask import celery
from girder_dask.errors import GirderDaskError
from girder_dask.plugin.backend import GirderBackend
from girder_dask.tasks.discovery import distributions_by_package

__all__ = ["mount"]

# The name under which girder_plugin_worker binds its handlers.
_WORKER_HANDLER = "worker"


def mount(info: dict[str, Any], backend: GirderBackend) -> None:
    """Run the tasks of girder_worker on Dask, if the site has chosen that.

    Raises
    ------
    GirderDaskError
        If it has, and the packages for it are missing.
    """
    if not celery.is_chosen():
        return
    try:
        from girder_worker.app import app

        from girder_dask.plugin.celery import routes
        from girder_dask.plugin.celery.messages import GirderCeleryMessages
    except ModuleNotFoundError as e:
        raise GirderDaskError(
            f"GIRDER_WORKER_BROKER is {celery.BROKER_URL}, and a package that this needs is not "
            f"installed in Girder ({e}). Run pip install 'girder_dask[celery]' there."
        ) from e
    from girder_dask.celery import publishing

    worker = getPlugin("worker")
    if worker is not None:
        worker.load(info)
    # It would put a token into each job that is saved.
    events.unbind("model.job.save.after", _WORKER_HANDLER)
    publishing.install(app)
    distributions_by_package()  # the first message would wait for it
    backend.celery_messages = messages = GirderCeleryMessages(backend)
    messages.ensure_index()
    routes.mount(info["apiRoot"].dask, backend, messages)
