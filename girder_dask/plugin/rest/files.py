"""Information for jobs about files: their path on disk, and the kind of a redirect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from girder import events
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, setResponseHeader
from girder.constants import AccessType, AssetstoreType, TokenScope
from girder.exceptions import FilePathException
from girder.models.assetstore import Assetstore
from girder.models.file import File

from girder_dask.http.redirects import ASSETSTORE, LINK
from girder_dask.plugin import settings
from girder_dask.plugin.girder_events import EVENT_HANDLER
from girder_dask.plugin.rest import routes
from girder_dask.plugin.store.access.requester import identify
from girder_dask.protocol.names import KIND_HEADER

__all__ = ["bind", "mount"]


def bind() -> None:
    """Add a header to each redirect of a download that names the kind of its target."""
    events.bind("model.file.download.complete", EVENT_HANDLER, _name_redirect)


def _name_redirect(event: Any) -> None:
    """Mark a redirect to an assetstore of the site or to a link, which any user can create.

    The header is part of the redirect, since the document of the file may change at any time.
    """
    if event.info["redirect"]:
        kind = ASSETSTORE if event.info["file"].get("assetstoreId") else LINK
        setResponseHeader(KIND_HEADER, kind)


def mount(resource: Resource) -> None:
    """Add the route to the resource ``dask``."""
    routes.add(resource, "GET", ("file", ":id", "path"), file_path)


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(
    Description("Return the path of a file on the disks of Girder.")
    .notes(
        "For running jobs, whose worker may share the disks. `path` is null for all others, while "
        "the setting `dask.direct_path` is off, and for a file that is not in a file system."
    )
    .modelParam("id", "The id of the file.", model=File, level=AccessType.READ)
    .errorResponse("ID was invalid.")
    .errorResponse("Read access was denied for the file.", 403)
)
def file_path(file: dict[str, Any]) -> dict[str, Any]:
    """Return the path of a file, and the fields that show whether the file has changed."""
    is_shown = settings.direct_path() and identify().job is not None
    path = _path(file)
    return {
        "path": path if is_shown else None,
        # Girder does not notice changes of imported files.
        "modified": None if path is None else Path(path).stat().st_mtime,
        "size": file.get("size"),
        "sha512": file.get("sha512"),
        "updated": file.get("updated") or file.get("created"),
    }


def _path(file: dict[str, Any]) -> str | None:
    if not file.get("assetstoreId"):
        return None  # a link
    assetstore = Assetstore().load(file["assetstoreId"])
    if assetstore is None or assetstore["type"] != AssetstoreType.FILESYSTEM:
        return None
    try:
        path = File().getLocalFilePath(file)
    except FilePathException:
        return None
    # With any other path, a worker would read something that is not a file of Girder.
    if path is None or not Path(path).is_absolute() or not Path(path).is_file():
        return None
    return str(Path(path).resolve())
