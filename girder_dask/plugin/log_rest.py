"""The route for the whole log of a job: ``dask/job/:id/log``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cherrypy
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, setContentDisposition, setResponseHeader
from girder.constants import AccessType, TokenScope
from girder.exceptions import RestException
from girder_jobs.models.job import Job

from girder_dask.plugin import chunks
from girder_dask.plugin.requester import identify

__all__ = ["mount"]


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    resource.route("GET", ("job", ":id", "log"), download)


@access.public(scope=TokenScope.DATA_READ, cookie=True)
@autoDescribeRoute(
    Description("Download the whole log of a job.")
    .notes(
        "As text in UTF-8. `GET job/:id` has at most the first 8 MiB of a log and, when the job "
        "has ended, its end. A request may have a header `Range`."
    )
    .modelParam("id", "The id of the job.", model=Job, force=True)
    .param("offset", "The byte to begin with.", dataType="integer", required=False, default=0)
    .param(
        "contentDisposition",
        "Whether a browser shows the log or stores it.",
        required=False,
        enum=["inline", "attachment"],
        default="inline",
    )
    .errorResponse("The offset is negative or behind the end of the log.")
    .errorResponse("Read access was denied for the job.", 403)
)
def download(
    job: dict[str, Any], offset: int, contentDisposition: str
) -> Callable[[], Iterator[bytes]]:
    """Stream the log of a job."""
    requester = identify()
    if not requester.runs(job):
        requester.require(job, AccessType.READ)
    log = chunks.load(job["_id"])
    start, end = _range(offset, log.size)
    setResponseHeader("Content-Type", "text/plain; charset=utf-8")
    # What a job prints is nothing that a browser should run.
    setResponseHeader("X-Content-Type-Options", "nosniff")
    setResponseHeader("Accept-Ranges", "bytes")
    setResponseHeader("Content-Length", end - start)
    setContentDisposition(f"{job['_id']}.log", contentDisposition)
    if (start, end) != (0, log.size):
        setResponseHeader("Content-Range", f"bytes {start}-{end - 1}/{log.size}")

    def stream() -> Iterator[bytes]:
        return log.read(start, end)

    return stream


def _range(offset: int, size: int) -> tuple[int, int]:
    """Return the first byte that is wanted, and the one after the last."""
    ranges = cherrypy.lib.httputil.get_ranges(cherrypy.request.headers.get("Range"), size)
    if ranges:
        start, end = ranges[0]
        return start, end
    if not 0 <= offset <= size:
        raise RestException(
            f"The log has {size:,} bytes, so it cannot be read from byte {offset:,} on. Give an "
            f"offset from 0 to {size:,}."
        )
    return offset, size
