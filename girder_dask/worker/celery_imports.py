"""Import of girder_worker's tasks when a worker joins, so that its first job does not wait for it.

The scheduler sends this plugin to all workers once it knows that Girder runs such tasks on Dask.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import Context
from typing import Any

from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin

from girder_dask.celery.worker_app import worker_app
from girder_dask.errors import TaskNotFoundError
from girder_dask.protocol.names import CELERY_PLUGIN_NAME
from girder_dask.utils.background import log_failure

__all__ = ["CeleryImportsPlugin"]

logger = logging.getLogger(__name__)

_MAX_WAIT_S = 30.0


class CeleryImportsPlugin(WorkerPlugin):
    """Plugin that imports the packages of girder_worker's tasks in a thread.

    A worker that joins has them before its first job, which would otherwise seem to have changed
    the process; it waits for no more than half a minute. What cannot be imported is logged. The
    worker goes on, and such a task ends in ERROR with the same reason.
    """

    name = CELERY_PLUGIN_NAME

    def __init__(self) -> None:
        self._imports: asyncio.Task[Any] | None = None

    async def setup(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        """Import; called on the event loop of the worker."""
        imports = asyncio.create_task(asyncio.to_thread(Context().run, _import))
        self._imports = log_failure(imports, logger, "Importing the tasks of girder_worker")
        await asyncio.wait({imports}, timeout=_MAX_WAIT_S)


def _import() -> None:
    began = time.monotonic()
    try:
        tasks = worker_app().tasks
    except TaskNotFoundError as e:
        logger.warning("This worker cannot run the tasks of girder_worker. %s", e)
        return
    logger.info(
        "%d tasks of girder_worker are imported (%.1f s)",
        sum(not name.startswith("celery.") for name in tasks),
        time.monotonic() - began,
    )
