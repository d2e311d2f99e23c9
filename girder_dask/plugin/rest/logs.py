"""The route of the whole log of a job: ``dask/job/:id/log``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, setResponseHeader
from girder.constants import AccessType, TokenScope
from girder.exceptions import RestException

from girder_dask.plugin import response_headers
from girder_dask.plugin.rest import byte_ranges, routes
from girder_dask.plugin.rest.routes import StoredJob
from girder_dask.plugin.store.access.requester import identify
from girder_dask.plugin.store.logs import chunks

__all__ = ["mount"]


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    routes.add(resource, "GET", ("job", ":id", "log"), download)


@access.public(scope=TokenScope.DATA_READ, cookie=True)
@autoDescribeRoute(
    Description("Download the whole log of a job.")
    .notes(
        "As text in UTF-8. `GET job/:id` has at most the first 8 MiB of a log and, when the job "
        "has ended, its end. A request may have a header `Range`."
    )
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param("offset", "The first byte.", dataType="integer", required=False, default=0)
    .param(
        "contentDisposition",
        "Whether a browser shows or downloads the log.",
        required=False,
        enum=["inline", "attachment"],
        default="inline",
    )
    .errorResponse("The offset is negative or behind the end of the log.")
    .errorResponse("Read access was denied for the job.", 403)
    .errorResponse("The range is not in the log.", 416)
)
def download(
    job: dict[str, Any], offset: int, contentDisposition: str
) -> Callable[[], Iterator[bytes]]:
    """Stream the log of a job."""
    requester = identify()
    if not requester.runs(job):
        requester.require(job, AccessType.READ)
    log = chunks.load(job["_id"])
    part = byte_ranges.requested(log.size, "The log")
    start, end = part or (_checked(offset, log.size), log.size)
    response_headers.set_headers(
        f"{job['_id']}.log", "text/plain; charset=utf-8", contentDisposition
    )
    setResponseHeader("Accept-Ranges", "bytes")
    setResponseHeader("Content-Length", end - start)
    if start < end and (part is not None or start):
        setResponseHeader("Content-Range", f"bytes {start}-{end - 1}/{log.size}")

    def stream() -> Iterator[bytes]:
        return log.read(start, end)

    return stream


def _checked(offset: int, size: int) -> int:
    if not 0 <= offset <= size:
        raise RestException(
            f"The log has {size:,} bytes, so it cannot be read from byte {offset:,} on. Give an "
            f"offset from 0 to {size:,}."
        )
    return offset
