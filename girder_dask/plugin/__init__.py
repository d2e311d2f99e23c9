"""The Girder plugin: jobs of this Girder run on a Dask cluster.

This package is the only one here that imports Girder, and only Girder imports it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from girder.constants import AccessType
from girder.models.file import File
from girder.plugin import GirderPlugin, getPlugin, registerPluginStaticContent
from girder_jobs.models.job import Job

from girder_dask import log_records, submit
from girder_dask.plugin import (
    artifact_rest,
    artifacts,
    aside,
    chunks,
    events,
    file_rest,
    log_rest,
    records,
    repeats,
    schemas,
    starts,
    submission_rest,
    sweeper,
    testing_rest,
    uploads,
)
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.rest import Dask

__all__ = ["DaskPlugin"]


class DaskPlugin(GirderPlugin):
    """What Girder loads."""

    DISPLAY_NAME = "Dask"

    def load(self, info: dict[str, Any]) -> None:
        """Bind the plugin to a Girder that is starting."""
        log_records.install()
        getPlugin("jobs").load(info)

        records.ensure_indices()
        aside.ensure()
        artifacts.ensure()
        chunks.DaskLog()
        uploads.ensure()
        repeats.ensure()
        Job().exposeFields(level=AccessType.READ, fields={"dask"})
        # So that workers can check what they fetch, and know when a copy is still good.
        File().exposeFields(level=AccessType.READ, fields={"sha512", "imported"})

        schemas.describe()
        backend = GirderBackend()
        events.bind(backend)
        uploads.bind()
        info["apiRoot"].dask = Dask(backend)
        submission_rest.mount(info["apiRoot"].dask, backend)
        file_rest.bind()
        file_rest.mount(info["apiRoot"].dask)
        log_rest.mount(info["apiRoot"].dask)
        uploads.mount(info["apiRoot"].dask)
        starts.mount(info["apiRoot"].dask)
        artifact_rest.mount(info["apiRoot"].job)
        testing_rest.mount(info["apiRoot"].dask)

        registerPluginStaticContent(
            plugin="dask",
            css=[],
            js=["/girder-plugin-dask.js"],
            staticDir=Path(__file__).parent / "web_client",
            tree=info["serverRoot"],
        )
        submit.install(backend)
        backend.connect()
        sweeper.start()
