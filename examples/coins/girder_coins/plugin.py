"""What runs in Girder: a route that starts the job. Only this module imports girder."""

from __future__ import annotations

from typing import Any

from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, filtermodel
from girder.constants import AccessType, TokenScope
from girder.models.file import File
from girder.models.folder import Folder
from girder.plugin import GirderPlugin, getPlugin
from girder_jobs.models.job import Job

from girder_coins.tasks import count_coins
from girder_dask.transforms import (
    GirderFileId,
    GirderItemMetadata,
    GirderUploadToFolder,
    TemporaryDirectory,
)


class Coins(Resource):
    """The routes under ``coins``."""

    def __init__(self) -> None:
        super().__init__()
        self.resourceName = "coins"
        self.route("POST", (":id", "count"), self.count)

    @access.user(scope=TokenScope.DATA_WRITE)
    @filtermodel(model=Job)
    @autoDescribeRoute(
        Description("Count the coins, or other blobs, in a picture.")
        .notes("Returns the job. The counts become metadata of the picture's item.")
        .modelParam("id", "The file that holds the picture.", model=File, level=AccessType.WRITE)
        .modelParam(
            "folderId",
            "The folder that gets the drawing of the outlines.",
            model=Folder,
            level=AccessType.WRITE,
            paramType="query",
        )
    )
    def count(self, file: dict[str, Any], folder: dict[str, Any]) -> dict[str, Any]:
        result = count_coins.delay(
            # On the worker these become the path of a local copy, and of an empty directory.
            GirderFileId(file["_id"]),
            TemporaryDirectory(),
            girder_job_title=f"Count coins in {file['name']}",
            # One for each element of what the task returns.
            girder_result_hooks=[
                GirderItemMetadata(file["itemId"]),
                GirderUploadToFolder(folder["_id"]),
            ],
        )
        return result.job


class CoinsPlugin(GirderPlugin):
    """Hooks the routes into Girder."""

    DISPLAY_NAME = "Coins"

    def load(self, info: dict[str, Any]) -> None:
        getPlugin("dask").load(info)
        info["apiRoot"].coins = Coins()
