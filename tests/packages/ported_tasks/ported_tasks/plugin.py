"""A Girder plugin whose one route starts the tasks."""

from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import AccessType
from girder.models.file import File
from girder.models.folder import Folder
from girder.models.item import Item
from girder.plugin import GirderPlugin, getPlugin
from girder_jobs.models.job import Job

from girder_dask.entrypoint import get_extension_tasks, get_extensions


class PortedPlugin(GirderPlugin):
    """Adds the routes under ``ported``."""

    DISPLAY_NAME = "Ported tasks"

    def load(self, info):
        getPlugin("jobs").load(info)
        Job().exposeFields(level=AccessType.READ, fields={"ported"})
        info["apiRoot"].ported = Ported()


class Ported(Resource):
    """The routes under ``ported``."""

    def __init__(self):
        super().__init__()
        self.resourceName = "ported"
        self.route("POST", ("start", ":name"), self.start)
        self.route("GET", ("described",), self.described)

    @access.user
    @autoDescribeRoute(
        Description("Start a task in one of the ways of ported_tasks.starts.")
        .param("name", "The name of the way.", paramType="path")
        .modelParam("fileId", model=File, level=AccessType.READ, paramType="query")
        .modelParam("itemId", model=Item, level=AccessType.WRITE, paramType="query")
        .modelParam("folderId", model=Folder, level=AccessType.WRITE, paramType="query")
    )
    def start(self, name, file, item, folder):
        from ported_tasks.starts import STARTS

        result = STARTS[name](file, item, folder)
        job = getattr(result, "job", None)
        return job and Job().filter(job, self.getCurrentUser())

    @access.user
    @autoDescribeRoute(Description("The described tasks of this package."))
    def described(self):
        assert "ported_tasks" in get_extensions()
        found = get_extension_tasks("ported_tasks", celery_only=True)
        return {name: task.describe() for name, task in found.items() if "scale" in name}
