"""The routes of artifacts, the files of jobs: ``job/:id/artifact``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cherrypy
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource
from girder.constants import AccessType, TokenScope
from girder.exceptions import RestException

from girder_dask.plugin import response_headers
from girder_dask.plugin.rest import byte_ranges, routes
from girder_dask.plugin.rest.routes import StoredJob
from girder_dask.plugin.store import artifacts
from girder_dask.plugin.store.access.requester import identify

__all__ = ["mount"]


def mount(resource: Resource) -> None:
    """Add the routes to Girder's resource ``job``."""
    routes.add(resource, "POST", (":id", "artifact"), add)
    routes.add(resource, "GET", (":id", "artifact"), list_all)
    routes.add(resource, "GET", (":id", "artifact", ":name"), download)
    routes.add(resource, "DELETE", (":id", "artifact", ":name"), delete)
    # The name of an artifact may contain directories, but a route has a fixed length.
    for levels in range(2, artifacts.MAX_LEVELS + 1):
        parts = tuple(f":part{n}" for n in range(levels))
        path = (":id", "artifact", *parts)
        routes.add(resource, "GET", path, _with_name(download, parts), documented=False)
        routes.add(resource, "DELETE", path, _with_name(delete, parts), documented=False)


def _with_name(handler: Callable[..., Any], parts: tuple[str, ...]) -> Callable[..., Any]:
    """Return a handler for a route in which several parts are the name of an artifact."""

    @functools.wraps(handler)
    def named(**given: Any) -> Any:
        name = "/".join(given.pop(part.removeprefix(":")) for part in parts)
        return handler(name=name, **given)

    return named


def _shown(artifact: dict[str, Any]) -> dict[str, Any]:
    return {
        "_id": artifact["_id"],
        "name": artifact["name"],
        "size": artifact["size"],
        "mimeType": artifact.get("mimeType"),
        "created": artifact["created"],
    }


@access.public(scope=TokenScope.DATA_WRITE)
@autoDescribeRoute(
    Description("Add a file to a job.")
    .notes(
        "The body of the request is the file. It replaces a file of the same name. A running job "
        "may add files to itself; its attempt is in the headers Girder-Dask-Job and "
        "Girder-Dask-Attempt."
    )
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param(
        "name",
        f"The name of the file, with / between directories, {artifacts.MAX_LEVELS} parts at most.",
    )
    .param(
        "size",
        "The number of bytes. Required if the request has no Content-Length.",
        dataType="integer",
        required=False,
    )
    .param("mimeType", "The media type.", required=False)
    .errorResponse("The name is invalid, or the body has fewer bytes than announced.")
    .errorResponse("Write access was denied for the job.", 403)
    .errorResponse("The attempt that sends it is over.", 409)
)
def add(job: dict[str, Any], name: str, size: int | None, mimeType: str | None) -> dict[str, Any]:
    """Store the body of the request as an artifact."""
    requester = identify()
    if not requester.runs(job):
        requester.require(job, AccessType.WRITE)
    size = _size(size)
    # Clients that do not know the type send "None".
    known = mimeType if mimeType and mimeType != "None" else None
    if known is not None and not response_headers.is_media_type(known):
        raise RestException(f"{known[:100]!r} is not a media type. An example of one is image/png.")
    try:
        stored = artifacts.add(
            job, name, size, cherrypy.request.body, user=requester.user, mime_type=known
        )
    except ValueError as e:
        raise RestException(str(e)) from e
    return _shown(stored)


def _size(announced: int | None) -> int:
    header = cherrypy.request.headers.get("Content-Length")
    length = int(header) if header and header.isdigit() else None
    size = announced if announced is not None else length
    if size is None or size < 0:
        raise RestException("The size of the artifact is missing. Give it in bytes: ?size=…")
    if length is not None and length != size:
        raise RestException(
            f"The artifact is announced with {size:,} bytes, but the body has {length:,}."
        )
    return size


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(
    Description("List the artifacts of a job.")
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .errorResponse("Read access was denied for the job.", 403)
)
def list_all(job: dict[str, Any]) -> list[dict[str, Any]]:
    """List the artifacts of a job by name."""
    _require(job, AccessType.READ)
    return [_shown(artifact) for artifact in artifacts.list_of(job["_id"])]


@access.public(scope=TokenScope.DATA_READ, cookie=True)
@autoDescribeRoute(
    Description("Download an artifact of a job.")
    .notes(
        "With `contentDisposition=inline` a browser shows pictures (PNG, JPEG, GIF, WebP) and "
        "plain text. It downloads all other types. A request may have a header `Range`."
    )
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param("name", "The name of the file.", paramType="path")
    .param(
        "contentDisposition",
        "Whether a browser shows or downloads the file.",
        required=False,
        enum=["inline", "attachment"],
        default="attachment",
    )
    .errorResponse("Read access was denied for the job.", 403)
    .errorResponse("The job has no such file.", 404)
    .errorResponse("The range is not in the file.", 416)
)
def download(job: dict[str, Any], name: str, contentDisposition: str) -> Any:
    """Stream an artifact."""
    _require(job, AccessType.READ)
    artifact = _find(job, name)
    part = byte_ranges.requested(artifact["size"], f"The artifact {name!r}")
    return artifacts.open_stream(artifact, part, contentDisposition)


@access.public(scope=TokenScope.DATA_WRITE)
@autoDescribeRoute(
    Description("Delete an artifact of a job.")
    .modelParam("id", "The id of the job.", model=StoredJob, force=True)
    .param("name", "The name of the file.", paramType="path")
    .errorResponse("Write access was denied for the job.", 403)
    .errorResponse("The job has no such file.", 404)
)
def delete(job: dict[str, Any], name: str) -> None:
    """Delete an artifact."""
    _require(job, AccessType.WRITE)
    artifacts.remove(_find(job, name))


def _require(job: dict[str, Any], level: int) -> None:
    requester = identify()
    if not requester.runs(job):
        requester.require(job, level)


def _find(job: dict[str, Any], name: str) -> dict[str, Any]:
    artifact = artifacts.find(job["_id"], name)
    if artifact is None:
        raise RestException(
            f"Job {job['_id']} has no artifact {name!r}. GET job/{job['_id']}/artifact lists them.",
            code=404,
        )
    return artifact
