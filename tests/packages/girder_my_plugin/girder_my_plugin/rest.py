"""Routes that start tasks, each in the request of a user."""

from __future__ import annotations

from typing import Any

import my_worker_tasks
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import AccessType, TokenScope
from girder.exceptions import RestException
from girder.models.file import File
from girder_jobs.models.job import Job

from girder_dask import GirderDaskError, JobResult
from girder_dask.transforms import GirderFileId, GirderUploadToFolder
from girder_my_plugin import documented


class MyRoutes(Resource):
    """The routes under ``my_plugin``. Those that start a job return what its result shows."""

    def __init__(self) -> None:
        super().__init__()
        self.resourceName = "my_plugin"
        self.route("POST", ("start",), self.start)
        self.route("POST", ("start_titled",), self.start_titled)
        self.route("POST", ("process_file", ":id"), self.process_file)
        self.route("POST", ("process_file_utils", ":id"), self.process_file_utils)
        self.route("POST", ("task", ":name"), self.start_any)
        self.route("GET", ("value", ":id"), self.value)

    @access.user(scope=TokenScope.DATA_WRITE)
    @autoDescribeRoute(
        Description("Start my_task with two arguments and two keyword arguments.")
        .param("arg1", "The first argument.")
        .param("arg2", "The second argument.")
    )
    def start(self, arg1: str, arg2: str) -> dict[str, Any]:
        return _shown(documented.start(arg1, arg2))

    @access.user(scope=TokenScope.DATA_WRITE)
    @autoDescribeRoute(Description("Start my_task with a title and a type of its own."))
    def start_titled(self) -> dict[str, Any]:
        return _shown(documented.start_titled())

    # Reading is not asked for in the next two, so that jobs can be tried which may not read
    # their file: what a job may read is decided when it runs, by its owner's rights.

    @access.user(scope=TokenScope.DATA_WRITE)
    @autoDescribeRoute(
        Description("Start my_task on a file.").modelParam("id", model=File, force=True)
    )
    def process_file(self, file: dict[str, Any]) -> dict[str, Any]:
        return _shown(JobResult(documented.process_file(file)))

    @access.user(scope=TokenScope.DATA_WRITE)
    @autoDescribeRoute(
        Description(
            "Start my_task on a file, with the transform of girder_worker_utils."
        ).modelParam("id", model=File, force=True)
    )
    def process_file_utils(self, file: dict[str, Any]) -> dict[str, Any]:
        return _shown(JobResult(documented.process_file_with_worker_utils(file)))

    @access.user(scope=TokenScope.DATA_WRITE)
    @autoDescribeRoute(
        Description("Start any task of my_worker_tasks.")
        .param("name", "The name of the task.", paramType="path")
        .jsonParam("args", "Its arguments.", required=False, requireArray=True)
        .jsonParam(
            "kwargs",
            "Its keyword arguments, and options such as girder_job_title.",
            required=False,
            requireObject=True,
        )
        .jsonParam(
            "files",
            "Ids of files by the keyword arguments that get their paths.",
            required=False,
            requireObject=True,
        )
        .param("folderId", "A folder that what the task returns is uploaded to.", required=False)
    )
    def start_any(
        self,
        name: str,
        args: list[Any] | None,
        kwargs: dict[str, Any] | None,
        files: dict[str, str] | None,
        folderId: str | None,
    ) -> dict[str, Any]:
        if name not in my_worker_tasks.__all__:
            raise RestException(f"my_worker_tasks has no task {name!r}.", code=404)
        inputs = {k: GirderFileId(file_id) for k, file_id in (files or {}).items()}
        kwargs = {**(kwargs or {}), **inputs}
        if folderId:
            kwargs["girder_result_hooks"] = [GirderUploadToFolder(folderId)]
        return _shown(getattr(my_worker_tasks, name).delay(*(args or ()), **kwargs))

    @access.user(scope=TokenScope.DATA_READ)
    @autoDescribeRoute(
        Description("Return the value of a job, as JSON; 409 with the reason if there is none.")
        .modelParam("id", model=Job, level=AccessType.READ)
        .param("timeout", "Seconds to wait.", dataType="float", required=False, default=0)
    )
    def value(self, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            return {"value": JobResult(job).get(timeout)}
        except (GirderDaskError, TimeoutError) as e:
            raise RestException(f"{type(e).__name__}: {e}", code=409) from e


def _shown(result: JobResult) -> dict[str, Any]:
    """Return what a result shows of its job, both when it is indexed and as ``.job``."""
    return {
        "id": result.id,
        "job_id": str(result.job["_id"]),
        "title": result["title"],
        "type": result["type"],
        "handler": result.job["handler"],
        "status": result.job["status"],
        "public": result.job["public"],
        "user_id": str(result.job["userId"]),
        "args": result.job["args"],
        "kwargs": result.job["kwargs"],
    }
