"""The Girder plugin that runs the jobs of this Girder on a Dask cluster.

Only this package imports Girder, and only Girder imports this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from girder.constants import AccessType
from girder.models.file import File
from girder.plugin import GirderPlugin, getPlugin, registerPluginStaticContent
from girder_jobs.models.job import Job

from girder_dask.client.backend import set_backend
from girder_dask.plugin import (
    celery,
    event_handlers,
    girder_log,
    retention_sweeper,
    token_sweeper,
)
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.map_cancellation.canceler import MapCanceler
from girder_dask.plugin.metrics.counter_store import DaskMetric
from girder_dask.plugin.rest import artifacts as artifact_rest
from girder_dask.plugin.rest import (
    attempt_fence,
    attempts,
    body_types,
    files,
    jobs,
    logs,
    metrics,
    testing,
    uploads,
)
from girder_dask.plugin.rest.scheduler import DaskResource
from girder_dask.plugin.store import artifacts, idempotency, models, quarantine
from girder_dask.protocol import json_log

__all__ = ["DaskPlugin"]


class DaskPlugin(GirderPlugin):
    """The plugin ``dask``, which Girder loads."""

    DISPLAY_NAME = "Dask"

    def load(self, info: dict[str, Any]) -> None:
        """Set up the database, the event handlers and the routes when Girder starts."""
        girder_log.install()
        json_log.install_if_configured()
        getPlugin("jobs").load(info)

        models.ensure_indices()
        quarantine.ensure_index()
        artifacts.set_up()
        models.DaskLog()
        DaskMetric()
        uploads.ensure()
        idempotency.ensure_index()
        Job().exposeFields(level=AccessType.READ, fields={"dask"})
        # Workers use these fields to check downloads and cached copies.
        File().exposeFields(level=AccessType.READ, fields={"sha512", "imported"})

        body_types.register()
        backend = GirderBackend()
        event_handlers.bind(backend)
        attempt_fence.bind()
        info["apiRoot"].dask = DaskResource(backend)
        jobs.mount(info["apiRoot"].dask, backend)
        files.bind()
        files.mount(info["apiRoot"].dask)
        logs.mount(info["apiRoot"].dask)
        uploads.mount(info["apiRoot"].dask)
        attempts.mount(info["apiRoot"].dask)
        artifact_rest.mount(info["apiRoot"].job)
        testing.mount(info["apiRoot"].dask)
        flusher = metrics.mount(info["apiRoot"].dask, backend)
        celery.mount(info, backend)

        registerPluginStaticContent(
            plugin="dask",
            css=[],
            js=["/girder-plugin-dask.js"],
            staticDir=Path(__file__).parent / "web_client",
            tree=info["serverRoot"],
        )
        set_backend(backend)
        backend.connect()
        MapCanceler(backend).start()
        token_sweeper.start()
        retention_sweeper.start()
        flusher.start()
