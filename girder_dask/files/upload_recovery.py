"""Recovery of uploads: files that earlier attempts of a job left in Girder, and broken uploads."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from girder_dask.http.retry import get_json, post_json
from girder_dask.protocol.names import ATTEMPT_HEADER, UPLOAD_HEADER

__all__ = ["UploadRecovery", "UploadState"]


class UploadState(Enum):
    """The state of an upload after a request without an answer.

    ``COMPLETE``: the file exists. ``UNCHANGED``: Girder has not seen the request. ``NOTHING``:
    Girder had processed a part of it, which was removed.
    """

    COMPLETE = "complete"
    UNCHANGED = "unchanged"
    NOTHING = "nothing"


class UploadRecovery:
    """Finds the uploads of a job in Girder, so that repeated ones replace them.

    An attempt may be lost after its upload and before the scheduler learns of its end. The next
    attempt uploads again, and must not leave two files where one attempt leaves one.

    Parameters
    ----------
    job_id
        The id of the job.
    attempt
        The number of this attempt, from 1.
    """

    def __init__(self, job_id: str, attempt: int) -> None:
        self._job_id = job_id
        self._attempt = attempt
        self._earlier_files: list[Mapping[str, Any]] | None = None

    def headers(self, upload: str) -> dict[str, str]:
        """Return the headers that name the attempt and the upload to Girder."""
        return {ATTEMPT_HEADER: str(self._attempt), UPLOAD_HEADER: upload}

    def settle(
        self,
        gc: Any,
        upload: str,
        parent: tuple[str, str],
        begun: tuple[str, int] | None = None,
    ) -> UploadState:
        """Return the state of a broken upload. A partial one in Girder is removed.

        Girder may have died at any step between the last byte and the finished file.

        Parameters
        ----------
        gc
            A ``girder_client.GirderClient`` of the job.
        upload
            The name of the upload, as in the header.
        parent
            The kind of the parent, ``'item'`` or ``'folder'``, and its id.
        begun
            Girder's id of the upload, and the offset of the piece that broke.

        Raises
        ------
        requests.RequestException
            If Girder refuses, or stays away for ``girder.worker.retry-time``.
        """
        given: dict[str, Any] = {"name": upload}
        if parent[0] == "folder":
            given["folderId"] = parent[1]
        if begun is not None:
            given["uploadId"], given["offset"] = begun
        answer = post_json(gc, f"dask/job/{self._job_id}/upload", given)
        return UploadState(answer["state"])

    def take(self, gc: Any, folder: str, name: str) -> Mapping[str, Any] | None:
        """Return a file that an earlier attempt left in a folder, or None.

        Each is returned once, the oldest first: a run may upload several files of one name.

        Parameters
        ----------
        gc
            A ``girder_client.GirderClient`` of the job.
        folder
            The id of the folder.
        name
            The name of the file.

        Raises
        ------
        requests.RequestException
            If Girder refuses, or stays away for ``girder.worker.retry-time``.
        """
        if self._attempt <= 1:
            return None
        if self._earlier_files is None:
            self._earlier_files = list(
                get_json(gc, f"dask/job/{self._job_id}/uploads", {"before": self._attempt})
            )
        for file in self._earlier_files:
            if (file["folderId"], file["name"]) == (folder, name):
                self._earlier_files.remove(file)
                return file
        return None
