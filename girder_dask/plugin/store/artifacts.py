"""Artifacts: files that jobs produce and that belong in no folder, such as reports and plots.

An artifact is a file of Girder that is attached to a job, as a thumbnail is attached to an item. It
is stored in an assetstore, and whoever may read the job may read it.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any
from unicodedata import category

import cherrypy
from bson import ObjectId
from girder import events
from girder.api import access
from girder.exceptions import GirderException, RestException
from girder.models.file import File
from girder.models.setting import Setting
from girder.models.upload import Upload
from girder.settings import SettingKey
from girder.utility import RequestBodyStream
from girder.utility.model_importer import ModelImporter
from girder_jobs.models.job import Job

from girder_dask.plugin import response_headers
from girder_dask.plugin.girder_events import EVENT_HANDLER
from girder_dask.plugin.store import models
from girder_dask.plugin.store.database import to_object_id

__all__ = [
    "ARTIFACT_INDEX",
    "ATTACHED_TO",
    "MAX_LEVELS",
    "add",
    "check_name",
    "find",
    "list_of",
    "open_stream",
    "protect",
    "remove",
    "remove_all",
    "set_up",
]

logger = logging.getLogger(__name__)

#: The ``attachedToType`` of artifacts.
ATTACHED_TO = "job"

#: The name of the index over the files that are attached to jobs.
ARTIFACT_INDEX = "dask_artifacts"

_CHUNK_BYTES = 32 * 1024**2
_MAX_NAME_CHARS = 1_000

#: The most parts of a name: the file and its directories. There is a route for each number of
#: parts.
MAX_LEVELS = 12

# Control characters, halves of surrogate pairs, and line separators.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


def set_up() -> None:
    """Create the index, and let Girder find the job that a file is attached to.

    Girder looks for that document among its own models when it checks access to the file, when it
    moves files to another assetstore, and when it looks for orphaned files. Downloads of artifacts
    are protected.
    """
    ModelImporter.registerModel(ATTACHED_TO, Job)
    events.bind("model.file.download.request", EVENT_HANDLER, protect)
    events.bind("rest.put.file/:id.before", EVENT_HANDLER, _check_change)
    File().ensureIndex(
        (
            [("attachedToId", 1), ("name", 1)],
            {"name": ARTIFACT_INDEX, "partialFilterExpression": {"attachedToType": ATTACHED_TO}},
        )
    )


def check_name(name: str) -> str:
    """Return the name of an artifact, which may include directories: ``plots/coins.png``.

    Raises
    ------
    ValueError
        If the name is invalid.
    """
    parts = name.split("/")
    # Some servers take %2F for a slash.
    odd = any(category(character) in _REFUSED_CATEGORIES for character in name)
    odd = odd or "\\" in name or "%2f" in name.lower()
    too_large = len(name) > _MAX_NAME_CHARS or len(parts) > MAX_LEVELS
    if odd or too_large or any(part.strip() in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{name[:200]!r} cannot be the name of an artifact. Give the name of a file, with / "
            f"between directories if there are any: at most {MAX_LEVELS} parts and "
            f"{_MAX_NAME_CHARS:,} characters."
        )
    return name


def list_of(job_id: ObjectId) -> list[dict[str, Any]]:
    """Return the artifacts of a job, sorted by name."""
    return list(_files().find(_of(job_id), sort=[("name", 1)]))


def find(job_id: ObjectId, name: str) -> dict[str, Any] | None:
    """Return an artifact of a job, None if the job has none of that name."""
    found: dict[str, Any] | None = _files().find_one(
        {**_of(job_id), "name": name}, sort=[("created", -1)]
    )
    return found


def add(
    job: Mapping[str, Any],
    name: str,
    size: int,
    stream: Any,
    *,
    user: Mapping[str, Any] | None,
    mime_type: str | None = None,
) -> dict[str, Any]:
    """Store an artifact. It replaces one of the same name, such as that of an earlier attempt.

    Parameters
    ----------
    size
        The number of bytes.
    stream
        A file to read the bytes from, in pieces.

    Raises
    ------
    ValueError
        If the stream has fewer bytes, or the name is invalid. Nothing is stored then.
    GirderException
        If the assetstore refuses the bytes.
    """
    before = list(_files().find({**_of(job["_id"]), "name": check_name(name)}))
    upload = Upload().createUpload(
        user=user,
        name=name,
        parentType=ATTACHED_TO,
        parent=job,
        size=size,
        mimeType=mime_type,
        attachParent=True,
    )
    try:
        file = _receive(upload, size, stream)
    except BaseException:
        _discard(upload)
        raise
    for old in before:
        File().remove(old)
    return file


def _receive(upload: dict[str, Any], size: int, stream: Any) -> dict[str, Any]:
    if size == 0:
        empty: dict[str, Any] = Upload().finalizeUpload(upload)
        return empty
    chunk_bytes = max(_CHUNK_BYTES, Setting().get(SettingKey.UPLOAD_MINIMUM_CHUNK_SIZE))
    received, document = 0, upload
    while received < size:
        wanted = min(chunk_bytes, size - received)
        data = _read(stream, wanted)
        received += len(data)
        if len(data) < wanted:
            raise ValueError(
                f"Only {received:,} of {size:,} bytes of the artifact {upload['name']!r} were "
                "received. Nothing was stored; send it again."
            )
        document = Upload().handleChunk(document, RequestBodyStream(io.BytesIO(data), len(data)))
    return document


def _read(stream: Any, size: int) -> bytes:
    """Read ``size`` bytes, or fewer at the end of the stream."""
    pieces, missing = [], size
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _discard(upload: dict[str, Any]) -> None:
    try:
        Upload().cancelUpload(upload)
    except (GirderException, OSError):
        # Girder removes abandoned uploads by itself.
        logger.warning("The broken upload %s is left behind", upload["_id"], exc_info=True)


def open_stream(artifact: Mapping[str, Any], part: tuple[int, int] | None, disposition: str) -> Any:
    """Return a function that streams an artifact or a part of it, and set the response headers.

    Raises
    ------
    RestException
        If the assetstore does not have the content.
    """
    start, end = part or (0, artifact["size"])
    # Girder copies name and type into headers, and fails with some of them.
    plain = {**artifact, "name": "artifact", "mimeType": "application/octet-stream"}
    try:
        stream = File().download(plain, start, endByte=end, contentDisposition="attachment")
    except GirderException as e:
        logger.exception("The artifact %s cannot be read", artifact["_id"])
        raise RestException(
            f"The content of the artifact {artifact['name']!r} cannot be read from Girder's "
            "assetstore. An administrator finds the cause in Girder's log.",
            code=404,
        ) from e
    response_headers.set_headers(artifact["name"], artifact.get("mimeType"), disposition)
    if part is None:
        # Girder would declare the whole file as a part if the request asks for a range.
        cherrypy.response.headers.pop("Content-Range", None)
    return stream


def protect(event: Any) -> None:
    """Prevent browsers from running an artifact, whichever route of Girder serves it."""
    if event.info["file"].get("attachedToType") == ATTACHED_TO and cherrypy.request.app is not None:
        response_headers.forbid_scripts()


@access.public  # the route itself checks access
def _check_change(event: Any) -> None:
    """Refuse an invalid name or type of an artifact in a request to Girder's own route."""
    params = event.info["params"]
    name, mime_type = params.get("name"), params.get("mimeType")
    # Girder prefers an id in the query to the id in the path.
    ids = [found for i in (event.info.get("id"), params.get("id")) if (found := to_object_id(i))]
    attached = {"_id": {"$in": ids}, "attachedToType": ATTACHED_TO}
    if not (name or mime_type) or _files().find_one(attached, {"_id": True}) is None:
        return
    try:
        check_name(str(name or "file"))
    except ValueError as e:
        raise RestException(str(e)) from e
    if mime_type and not response_headers.is_media_type(mime_type):
        raise RestException(
            f"{str(mime_type)[:100]!r} is not a media type. Give one such as image/png."
        )


def remove(artifact: dict[str, Any]) -> None:
    """Delete an artifact."""
    File().remove(artifact)


def remove_all(job_id: ObjectId) -> None:
    """Delete the artifacts of a job. If one cannot be deleted, the others still are."""
    for artifact in list_of(job_id):
        try:
            File().remove(artifact)
        except (GirderException, OSError):
            logger.exception("The artifact %s of job %s is left behind", artifact["_id"], job_id)


def _files() -> Any:
    return models.collection(File())


def _of(job_id: ObjectId) -> dict[str, Any]:
    return {"attachedToType": ATTACHED_TO, "attachedToId": job_id}
